"""Tables of text as LaTeX with booktabs."""

import pandas

LATEX = {
    "\\": r"\textbackslash{}",
    "†": r"$^\dagger$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{character: "\\" + character for character in "&%$#_{}"},
}


PREAMBLE = r"""% needs \usepackage{booktabs}; with \usepackage{graphicx} wide tables shrink to the column
\providecommand{\resizebox}[3]{#3}"""


def latex_table(cells: pandas.DataFrame, caption: str, label: str, footer: list[str]) -> str:
    """A `table` environment. Cells come as LaTeX; names of rows and columns, caption and footer as plain text."""
    cells = cells.copy()
    joined = [": ".join(row) if isinstance(row, tuple) else row for row in cells.index]
    cells.index = pandas.Index([escape_latex(row) for row in joined])
    titles = {"speedup": "speedup", "tau": r"$\tau$"}
    cells.columns = pandas.MultiIndex.from_tuples([(escape_latex(t), titles[title]) for t, title in cells.columns])
    text = cells.style.to_latex(
        hrules=True,
        multicol_align="c",
        column_format="l" + "r" * len(cells.columns),
        environment="table*" if len(cells.columns) > 6 else "table",  # two columns wide from three tasks on
        position_float="centering",
        position="t",
        caption=escape_latex(caption),
        label=label,
    )
    return _with_footer(text, " ".join(escape_latex(line) for line in footer))


def _with_footer(table: str, footer: str) -> str:
    """The rows, shrunk only where they are wider than the column, and the footer as wide as that."""
    fit = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
    note = rf"\par\medskip\begin{{minipage}}{{\linewidth}}\scriptsize {footer}\end{{minipage}}"
    table = table.replace(r"\begin{tabular}", f"\\small\\setlength{{\\tabcolsep}}{{4pt}}\n{fit}\n\\begin{{tabular}}")
    return table.replace(r"\end{tabular}", f"\\end{{tabular}}}}\n{note}")


def escape_latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)
