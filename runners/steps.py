"""Step tables: Parquet files with a schema version, and SQL over those of a whole sweep."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import duckdb
import pandas
import pyarrow as pa
import pyarrow.parquet as pq

from runners.records import SCHEMA_VERSION, STEP_COLUMNS

Checked = TypeVar("Checked")
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
    schemas, problems = _readable(files, _checked_schema)
    try:
        return _answer(_alike(schemas), query), problems
    except duckdb.Error:
        whole, damaged = _readable(list(schemas), _read_through)
        if not damaged:
            raise  # the query is wrong, not a file
        return _answer(_alike({path: schemas[path] for path in whole}), query), problems + damaged


def _answer(alike: list[list[Path]], query: str) -> pandas.DataFrame:
    with duckdb.connect() as connection:
        connection.execute("SET enable_progress_bar = false")  # it would write to stdout
        for number, group in enumerate(alike):
            names = [re.sub(r"([\[\]*?])", r"[\1]", str(path)) for path in group]  # duckdb reads paths as patterns
            rows = connection.read_parquet(names, filename=True, hive_partitioning=False)
            rows.project("* EXCLUDE (filename), parse_path(filename)[-2] AS point").create_view(f"steps_{number}")
        if alike:
            union = " UNION ALL BY NAME ".join(f"FROM steps_{number}" for number in range(len(alike)))
            connection.execute(f"CREATE VIEW steps AS {union}")
        else:
            columns = ", ".join(f"{name} {kind}" for name, kind in STEP_COLUMNS.items())
            connection.execute(f"CREATE TABLE steps ({columns}, point VARCHAR)")
        return connection.execute(query).df()


def _readable(files: list[Path], check: Callable[[Path], Checked]) -> tuple[dict[Path, Checked], list[str]]:
    """What `check` says of each file that it can read, and one line for each other."""
    checked, problems = {}, []
    for path in files:
        try:
            checked[path] = check(path)
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            problems.append(f"{path.parent.name}/{path.name}: {' '.join(str(error).split())}")
    return checked, problems


def _alike(schemas: Mapping[Path, pq.ParquetSchema]) -> list[list[Path]]:
    """Files of the same columns together, which are read at once in half the time."""
    known: list[pq.ParquetSchema] = []
    groups: list[list[Path]] = []
    for path, schema in schemas.items():
        place = next((place for place, other in enumerate(known) if other.equals(schema)), len(known))
        if place == len(known):
            known.append(schema)
            groups.append([])
        groups[place].append(path)
    return groups


def _checked_schema(path: Path) -> pq.ParquetSchema:
    """From the footer alone, which a truncated file lacks."""
    footer = pq.read_metadata(path)
    version = (footer.metadata or {}).get(VERSION_KEY, b"none").decode()
    if version != str(SCHEMA_VERSION):
        raise ValueError(f"schema version {version}, this code reads {SCHEMA_VERSION}")
    return footer.schema


def _read_through(path: Path) -> None:
    pq.read_table(path)
