"""Enough of SELECT for the clients of SkyServer and Data Lab: parsed, then run on tables of numpy columns.

SELECT [DISTINCT] [TOP n] columns FROM table [LEFT] JOIN table ON column = column ... WHERE ... ORDER BY ...; names in
any case; AND, OR, NOT, BETWEEN, IN, IS NULL, LIKE, comparison, arithmetic and bits; ABS, MOD; q3c_radial_query, alone
or as 't' = q3c_radial_query(...). What it does not know is an error that says so, never a guess.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Column = NDArray[Any]
"""One value a row; a masked array where some are null."""
Table = Mapping[str, Column]
"""Columns by name as the database spells them."""
Source = Callable[[str, str | None], Table]
"""A table by its name with its schema, and the text argument where it is a table function's."""

TOKEN = re.compile(
    r"\s+|(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<text>'(?:[^']|'')*')"
    r"|(?P<name>[A-Za-z_#][\w#]*|\[\w+\])|(?P<sign><>|<=|>=|!=|[-+*/%&|(),.=<>;])"
)
WORDS = frozenset(
    "select distinct top from as join inner left outer on where and or not between in is null like order by asc "
    "desc".split()
)
ARITHMETIC: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "%": operator.mod,
    "&": operator.and_,
    "|": operator.or_,
}
COMPARISON: Mapping[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "<>": operator.ne,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def separation(ra: Any, dec: Any, ra2: Any, dec2: Any) -> NDArray[np.float64]:
    """Degrees between positions in degrees."""
    a, d, a2, d2 = (np.radians(np.asarray(v, dtype=np.float64)) for v in (ra, dec, ra2, dec2))
    half = np.sin((d2 - d) / 2) ** 2 + np.cos(d) * np.cos(d2) * np.sin((a2 - a) / 2) ** 2
    return np.asarray(np.degrees(2 * np.arcsin(np.sqrt(np.clip(half, 0, 1)))))


def _within(ra: Any, dec: Any, ra2: Any, dec2: Any, radius: Any) -> Column:
    """Whether positions are so near; those that are null are not."""
    known = ~(np.ma.getmaskarray(ra) | np.ma.getmaskarray(dec))
    return np.asarray(known & (separation(np.ma.getdata(ra), np.ma.getdata(dec), ra2, dec2) <= radius))


FUNCTIONS: Mapping[str, tuple[int, Callable[..., Any]]] = {
    "abs": (1, np.ma.abs),
    "fphototypen": (1, lambda kind: kind),  # dbo.fPhotoTypeN: types are kept as their names
    "mod": (2, np.ma.fmod),  # of the sign of what is divided, as the database's
    "q3c_radial_query": (5, _within),
}
"""Number of arguments, and what they do."""
CONDITIONS = frozenset(("and", "or", "not", "between", "in", "is", "like", "q3c_radial_query"))
"""Words that make a bracket's content a condition."""
DEEPEST = 64
"""Brackets and NOTs within one another."""


class SqlError(ValueError):
    """The query is not understood, or names what is not there."""


@dataclass
class Joined:
    """Rows of the joined tables: per alias its table, and the row of each (-1: none)."""

    tables: dict[str, Table]
    rows: dict[str, NDArray[np.int64]]

    @property
    def n(self) -> int:
        """Rows."""
        return len(next(iter(self.rows.values())))

    def column(self, name: str, alias: str | None) -> Column:
        """A column of one of the tables."""
        if alias is not None and alias.lower() not in self.tables:
            raise SqlError(f'The multi-part identifier "{alias}.{name}" could not be bound.')
        found = [
            (a, key)
            for a, table in self.tables.items()
            if alias is None or a == alias.lower()
            for key in table
            if key.lower() == name.lower()
        ]
        if not found:
            raise SqlError(f"Invalid column name '{name}'.")
        if len(found) > 1:
            raise SqlError(f"Ambiguous column name '{name}'.")
        (table, key), rows = found[0], self.rows[found[0][0]]
        values = self.tables[table][key]
        none = rows < 0
        taken = values[np.where(none, 0, rows)] if len(values) else np.zeros(len(rows), values.dtype)
        return np.ma.MaskedArray(taken, mask=np.ma.getmaskarray(taken) | none) if none.any() else taken

    def where(self, keep: NDArray[np.bool_]) -> Joined:
        """The rows for which `keep` holds."""
        return Joined(self.tables, {a: r[keep] for a, r in self.rows.items()})


def select(sql: str, source: Source) -> dict[str, Column]:
    """What the query gives: columns in order, by the names that it gives them. SqlError where it cannot be run."""
    return _Query(sql, source).run()


class _Query:
    """One query, read from left to right."""

    def __init__(self, sql: str, source: Source) -> None:
        self.tokens = list(_tokens(sql))
        self.at, self.depth = 0, 0
        self.source = source
        self.joined = Joined({}, {})

    def run(self) -> dict[str, Column]:
        self.want("select")
        distinct = self.take("distinct")
        top = int(self.number()) if self.take("top") else None
        items = self.at
        self.skip_to("from")
        self.tables()
        if self.take("where"):
            self.joined = self.joined.where(np.ma.filled(self.truth(), False))
        orders = self.orders() if self.take("order") else []
        self.take(";")
        if self.at < len(self.tokens):
            raise SqlError(f"Incorrect syntax near '{self.tokens[self.at][1]}'.")
        order = np.arange(self.joined.n)
        for values, falling in reversed(orders):
            ranks = np.unique(np.ma.getdata(values)[order], return_inverse=True)[1]
            order = order[np.argsort(-ranks if falling else ranks, kind="stable")]
        self.at = items
        out = {name: values if len(values) != len(order) else values[order] for name, values in self.items().items()}
        if distinct:
            first: dict[tuple[Any, ...], int] = {}
            for i, row in enumerate(zip(*(v.tolist() for v in out.values()), strict=True)):
                first.setdefault(row, i)
            out = {name: v[list(first.values())] for name, v in out.items()}
        return out if top is None else {name: v[:top] for name, v in out.items()}

    def peek(self, *wanted: str) -> bool:
        return self.at < len(self.tokens) and self.tokens[self.at][1].lower() in wanted

    def take(self, wanted: str) -> bool:
        found = self.peek(wanted) and self.tokens[self.at][0] != "text"
        self.at += found
        return found

    def want(self, wanted: str) -> None:
        if not self.take(wanted):
            found = self.tokens[self.at][1] if self.at < len(self.tokens) else "the end"
            raise SqlError(f"Incorrect syntax near '{found}': wanted {wanted.upper()}.")

    def next(self, kind: str) -> str:
        if self.at >= len(self.tokens) or self.tokens[self.at][0] != kind:
            found = self.tokens[self.at][1] if self.at < len(self.tokens) else "the end"
            raise SqlError(f"Incorrect syntax near '{found}': wanted a {kind}.")
        self.at += 1
        return self.tokens[self.at - 1][1]

    def number(self) -> float:
        return float(self.next("number"))

    def name(self) -> str:
        found = self.next("name")
        if found.lower() in WORDS:
            raise SqlError(f"Incorrect syntax near the keyword '{found}'.")
        return found.strip("[]")

    def skip_to(self, word: str) -> None:
        while self.at < len(self.tokens) and not self.peek(word):
            self.at += 1
        self.want(word)

    def tables(self) -> None:
        self.table(None)
        while True:
            if self.take(","):
                self.table("cross")
                continue
            left = self.take("left")
            if left:
                self.take("outer")
            elif not self.take("inner") and not self.peek("join"):
                return
            self.want("join")
            self.table("left" if left else "inner")

    def table(self, how: str | None) -> None:
        name, argument = self.name(), None
        while self.take("."):
            name += "." + self.name()
        last = name.rpartition(".")[2]
        if self.take("("):
            argument = self.next("text")[1:-1]
            self.want(")")
        table = self.source(name, argument)
        self.take("as")
        named = self.at < len(self.tokens) and self.tokens[self.at][0] == "name" and not self.peek(*WORDS)
        alias = (self.name() if named else last).lower()
        if alias in self.joined.tables:
            raise SqlError(f"The correlation name '{alias}' is specified multiple times.")
        n = len(next(iter(table.values()), np.zeros(0)))
        if how is None:
            self.joined = Joined({alias: table}, {alias: np.arange(n)})
            return
        if how == "cross":
            raise SqlError("Tables are joined by JOIN ... ON alone here.")
        self.want("on")
        start = self.at
        one = self.reference()
        self.want("=")
        other = self.reference()
        if (one[1] or "").lower() == alias:
            one, other = other, one
        if (other[1] or "").lower() != alias or one[1] is None:
            raise SqlError(f"Incorrect syntax near '{self.tokens[start][1]}': wanted ON alias.column = alias.column.")
        held = Joined({alias: table}, {alias: np.arange(n)}).column(*other)
        places: dict[Any, list[int]] = {}
        for i, value in enumerate(held.tolist()):
            places.setdefault(value, []).append(i)
        left_rows: list[int] = []
        right_rows: list[int] = []
        for i, value in enumerate(self.joined.column(*one).tolist()):
            matches = places.get(value, []) if value is not None else []
            matches = matches or ([-1] if how == "left" else [])
            left_rows += [i] * len(matches)
            right_rows += matches
        rows = {a: r[np.array(left_rows, dtype=np.int64)] for a, r in self.joined.rows.items()}
        rows[alias] = np.array(right_rows, dtype=np.int64)
        self.joined = Joined({**self.joined.tables, alias: table}, rows)

    def reference(self) -> tuple[str, str | None]:
        name = self.name()
        return (self.name(), name) if self.take(".") else (name, None)

    def orders(self) -> list[tuple[Column, bool]]:
        self.want("by")
        out = []
        while True:
            values = self.value()
            falling = self.take("desc")
            if not falling:
                self.take("asc")
            out.append((values, falling))
            if not self.take(","):
                return out

    def items(self) -> dict[str, Column]:
        out: dict[str, Column] = {}
        while True:
            for name, values in self.item():
                if name in out:
                    raise SqlError(f"Two columns are called '{name}'.")
                out[name] = np.broadcast_to(values, (self.joined.n,)) if np.ndim(values) == 0 else values
            if not self.take(","):
                return out

    def item(self) -> Iterable[tuple[str, Column]]:
        if self.take("*"):
            return [(k, self.joined.column(k, a)) for a, t in self.joined.tables.items() for k in t]
        start = self.at
        if self.peek("count"):
            self.at += 1
            for sign in "(*)":
                self.want(sign)
            values: Any = np.array([self.joined.n])
            name = "Column1"
        else:
            values = self.value()
            kind, name = self.tokens[self.at - 1]
            name = name.strip("[]") if kind == "name" and self.at - start in (1, 3) else "Column1"
        if self.take("as"):
            return [(self.name(), values)]
        named = self.at < len(self.tokens) and self.tokens[self.at][0] == "name" and not self.peek("from")
        return [(self.name() if named else name, values)]

    def truth(self) -> Any:
        found = self.conjunction()
        while self.take("or"):
            found = np.ma.filled(found, False) | np.ma.filled(self.conjunction(), False)
        return found

    def conjunction(self) -> Any:
        found = self.condition()
        while self.take("and"):
            found = np.ma.filled(found, False) & np.ma.filled(self.condition(), False)
        return found

    def condition(self) -> Any:
        self.depth += 1
        if self.depth > DEEPEST:
            raise SqlError("The query is nested too deeply.")
        try:
            return ~self.condition() if self.take("not") else self.comparison()
        finally:
            self.depth -= 1

    def comparison(self) -> Any:
        if self.peek("(") and self.bracket_is_condition():
            self.want("(")
            found = self.truth()
            self.want(")")
            return found
        left = self.value()
        if self.take("is"):
            wanted = not self.take("not")
            self.want("null")
            return np.ma.getmaskarray(np.ma.asarray(left)) == wanted
        negated = self.take("not")
        if self.take("between"):
            low = self.value()
            self.want("and")
            found = (left >= low) & (left <= self.value())
        elif self.take("in"):
            self.want("(")
            found = left == self.value()
            while self.take(","):
                found = found | (left == self.value())
            self.want(")")
        elif self.take("like"):
            text = self.next("text")[1:-1]
            pattern = re.compile("".join({"%": ".*", "_": "."}.get(c, re.escape(c)) for c in text), re.I | re.S)
            found = np.array([bool(pattern.fullmatch(str(v))) for v in np.ma.asarray(left).tolist()], dtype=bool)
        elif not negated and self.at < len(self.tokens) and self.tokens[self.at][1] in COMPARISON:
            compare = COMPARISON[self.tokens[self.at][1]]
            self.at += 1
            right = self.value()
            if _is_text(left) and np.ndim(left) == 0 and np.asarray(right).dtype == np.bool_:
                left = str(left).lower() in ("t", "true", "1")
            if (_is_text(left), _is_text(right)) == (True, True):
                left, right = _folded(left), _folded(right)  # the database compares text in any case
            elif _is_text(left) != _is_text(right):
                raise SqlError("Conversion failed: a text is compared with a number.")
            found = compare(left, right)
        elif not negated and np.asarray(left).dtype == np.bool_:
            found = left
        else:
            found = self.tokens[self.at][1] if self.at < len(self.tokens) else "the end"
            raise SqlError(f"Incorrect syntax near '{found}': wanted a comparison.")
        found = np.broadcast_to(np.ma.filled(found, False), (self.joined.n,))
        return ~found if negated else found

    def bracket_is_condition(self) -> bool:
        """Whether what stands between this bracket and its end compares something."""
        depth = 0
        for kind, word in self.tokens[self.at :]:
            if kind != "text":
                depth += {"(": 1, ")": -1}.get(word, 0)
                if word in COMPARISON or word.lower() in CONDITIONS:
                    return True
            if depth == 0:
                break
        return False

    def value(self) -> Any:
        found = self.factor()
        while self.at < len(self.tokens) and self.tokens[self.at][0] == "sign" and self.peek(*ARITHMETIC):
            sign = self.tokens[self.at][1]
            self.at += 1
            try:
                found = ARITHMETIC[sign](found, self.factor())
            except TypeError as error:
                raise SqlError(f"The data types are incompatible in the '{sign}' operator.") from error
        return found

    def factor(self) -> Any:
        if self.take("-"):
            return -self.factor()
        if self.take("("):
            found = self.value()
            self.want(")")
            return found
        if self.at >= len(self.tokens):
            raise SqlError("Incorrect syntax near the end.")
        kind, word = self.tokens[self.at]
        if kind == "number":
            self.at += 1
            return int(word) if word.isdigit() else float(word)
        if kind == "text":
            self.at += 1
            return np.str_(word[1:-1].replace("''", "'"))
        name, alias = self.reference()
        if self.take("("):
            if name.lower() not in FUNCTIONS:
                raise SqlError(f"'{name}' is not a recognized function name.")
            n, function = FUNCTIONS[name.lower()]
            arguments = [self.value()]
            while self.take(","):
                arguments.append(self.value())
            self.want(")")
            if len(arguments) != n:
                raise SqlError(f"'{name}' wants {n} arguments; {len(arguments)} were given.")
            return function(*arguments)
        return self.joined.column(name, alias)


def _tokens(sql: str) -> Iterable[tuple[str, str]]:
    at = 0
    while at < len(sql):
        found = TOKEN.match(sql, at)
        if found is None:
            raise SqlError(f"Incorrect syntax near '{sql[at : at + 10]}'.")
        if found.lastgroup is not None:
            yield found.lastgroup, found.group()
        at = found.end()


def _is_text(values: Any) -> bool:
    return np.asarray(values).dtype.kind == "U"


def _folded(values: Any) -> Any:
    return np.char.lower(np.ma.getdata(values)) if np.ndim(values) else np.str_(str(values).lower())
