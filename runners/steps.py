"""Step tables: Parquet files with a schema version, and SQL over those of a whole sweep."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import duckdb
import pandas
import pyarrow as pa
import pyarrow.parquet as pq

from runners.records import SCHEMA_VERSION, STEP_COLUMNS

VERSION_KEY, HASH_KEY = b"treebench_schema_version", b"treebench_config_hash"


def encode(rows: pandas.DataFrame | pa.Table, columns: Mapping[str, str], config_hash: str) -> bytes:
    """Known columns first and in their own types; further columns are kept as they are."""
    table = pa.Table.from_pandas(rows, preserve_index=False) if isinstance(rows, pandas.DataFrame) else rows
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise ValueError(f"steps lack the columns {', '.join(missing)}")
    more = [name for name in table.column_names if name not in columns]
    known = [pa.field(name, pa.type_for_alias(kind)) for name, kind in columns.items()]
    schema = pa.schema([*known, *(table.schema.field(name) for name in more)])
    labels = {VERSION_KEY: str(SCHEMA_VERSION).encode(), HASH_KEY: config_hash.encode()}
    sink = pa.BufferOutputStream()
    pq.write_table(table.select(schema.names).cast(schema).replace_schema_metadata(labels), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def query_steps(files: list[Path], query: str) -> tuple[pandas.DataFrame, list[str]]:
    """Answer of a query over the table `steps` of all files, and one line for each file that cannot be read."""
    files, problems = _split_readable(files, _check_footer)
    try:
        return _answer(files, query), problems
    except duckdb.Error:
        sound, damaged = _split_readable(files, pq.read_table)
        if not damaged:
            raise  # the query is wrong, not a file
        return _answer(sound, query), problems + damaged


def _answer(files: list[Path], query: str) -> pandas.DataFrame:
    with duckdb.connect() as connection:
        if files:
            names = [re.sub(r"([\[\]*?])", r"[\1]", str(path)) for path in files]  # duckdb reads paths as patterns
            rows = connection.read_parquet(names, union_by_name=True, filename=True, hive_partitioning=False)
            rows.project("* EXCLUDE (filename), parse_path(filename)[-2] AS point").create_view("steps")
        else:
            columns = ", ".join(f"{name} {kind}" for name, kind in STEP_COLUMNS.items())
            connection.execute(f"CREATE TABLE steps ({columns}, point VARCHAR)")
        connection.execute("SET enable_progress_bar = false")  # it would write to stdout
        return connection.execute(query).df()


def _split_readable(files: list[Path], check: Callable[[Path], object]) -> tuple[list[Path], list[str]]:
    readable, problems = [], []
    for path in files:
        try:
            check(path)
            readable.append(path)
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            problems.append(f"{path.parent.name}/{path.name}: {' '.join(str(error).split())}")
    return readable, problems


def _check_footer(path: Path) -> None:
    """A truncated file has none."""
    version = (pq.read_metadata(path).metadata or {}).get(VERSION_KEY, b"none").decode()
    if version != str(SCHEMA_VERSION):
        raise ValueError(f"schema version {version}, this code reads {SCHEMA_VERSION}")
