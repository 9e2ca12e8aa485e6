"""A small part of ADQL: what one SELECT of one table can ask about positions and columns.

    SELECT [TOP n] * | expression [AS name], ... FROM [schema.]table [AS alias]
    [WHERE condition] [ORDER BY expression [ASC | DESC], ...] [OFFSET n]

A condition compares, with AND, OR, NOT, BETWEEN, IN, IS NULL, and with nulls as SQL has them: what is not known is not
kept. Functions: DISTANCE of two points, CONTAINS of a point in a CIRCLE, BOX or convex POLYGON, and q3c_radial_query.
Whatever else is asked for is a `QueryError`, as from a server that does not know it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Inside = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.bool_]]
"""Whether positions (right ascension, declination in degrees) lie in a region."""

TOKEN = re.compile(
    r"""\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    |(?P<string>'(?:[^']|'')*')
    |(?P<name>[A-Za-z_]\w*|"[^"]+")
    |(?P<symbol><>|!=|<=|>=|[-+*/(),.=<>;]))""",
    re.VERBOSE,
)
RESERVED = set(
    "ALL AND AS ASC BETWEEN BY DESC DISTINCT FROM GROUP HAVING IN IS JOIN LIKE NOT NULL OFFSET ON OR ORDER SELECT TOP "
    "UNION WHERE".split()
)
COMPARISONS: Mapping[str, Any] = {
    "=": pc.equal,
    "<>": pc.not_equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
TRUTH = {"t": True, "true": True, "1": True, "f": False, "false": False, "0": False}


class QueryError(ValueError):
    """The query is not one that this server knows how to answer."""


@dataclass(frozen=True)
class Node:
    """An expression."""

    of: Callable[[pa.Table], Any]
    "an Arrow array, one value a row, or a scalar"
    column: str | None = None
    "the name, where it is nothing but a column"
    unit: str = ""


@dataclass
class Query:
    """One SELECT, taken apart."""

    top: int | None = None
    items: list[tuple[str | None, Node | None]] = field(default_factory=list)
    "name and value; no value: all columns"
    table: str = ""
    where: Node | None = None
    order: list[tuple[Node, bool]] = field(default_factory=list)
    "value, and whether it descends"
    offset: int = 0


def answer(text: str, tables: Mapping[str, Callable[[], pa.Table]], rng: np.random.Generator) -> pa.Table:
    """The rows that a query asks for, in an order that `rng` decides as far as the query does not."""
    query = _Parser(text).query()
    if query.table not in tables:
        raise QueryError(f"Table {query.table!r} is not known; there are {', '.join(sorted(tables))}")
    table = tables[query.table]()
    try:
        return _run(query, table, rng)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise QueryError(f"The query compares what cannot be compared: {error}") from error


def _run(query: Query, table: pa.Table, rng: np.random.Generator) -> pa.Table:
    names: list[str] = []
    nodes: list[Node] = []
    for name, node in query.items:
        every = [(n, _column(n)) for n in table.column_names] if node is None else [(name or f"col{len(names)}", node)]
        names += [n for n, _ in every]
        nodes += [v for _, v in every]
    if query.where is not None:
        kept = query.where.of(table)
        if not pa.types.is_boolean(kept.type):
            raise QueryError("what stands behind WHERE is no condition")
        table = table.filter(_filled(kept, table.num_rows))
    table = table.take(pa.array(rng.permutation(table.num_rows)))
    out = pa.table(
        [_filled(node.of(table), table.num_rows) for node in nodes],
        schema=pa.schema([_field(n, node, table) for n, node in zip(names, nodes, strict=True)]),
    )
    if query.order:
        # a name that the query gave goes before a column
        both = {**{n: table[n] for n in table.column_names}, **{n: out[n] for n in out.column_names}}
        wide = pa.table(both)
        keys = {f"k{i}": _filled(node.of(wide), len(wide)) for i, (node, _) in enumerate(query.order)}
        how = [(f"k{i}", "descending" if down else "ascending") for i, (_, down) in enumerate(query.order)]
        out = out.take(pc.sort_indices(pa.table(keys), sort_keys=how))
    out = out.slice(query.offset)
    return out if query.top is None else out.slice(0, query.top)


def _field(name: str, node: Node, table: pa.Table) -> pa.Field:
    if node.column is not None:
        return table.schema.field(_place(node.column, table)).with_name(name)
    return pa.field(name, node.of(table).type, metadata={"unit": node.unit} if node.unit else None)


def _filled(value: Any, n: int) -> Any:
    return pa.array([value.as_py()] * n, value.type) if isinstance(value, pa.Scalar) else value


def _place(name: str, table: pa.Table) -> int:
    lower = [n.lower() for n in table.column_names]
    if name.lower() not in lower:
        raise QueryError(f"1 unresolved identifiers: {name}")
    return lower.index(name.lower())


def _column(name: str) -> Node:
    return Node(lambda table: table.column(_place(name, table)), name)


def _compare(how: str, left: Any, right: Any) -> Any:
    """Left and right, with the spellings of true and false that a text may have beside a flag."""
    pair = [left, right]
    for i, (one, other) in enumerate([(left, right), (right, left)]):
        if pa.types.is_boolean(one.type) and pa.types.is_string(other.type) and isinstance(other, pa.Scalar):
            if other.as_py().lower() not in TRUTH:
                raise QueryError(f"{other.as_py()!r} is neither true nor false")
            pair[1 - i] = pa.scalar(TRUTH[other.as_py().lower()])
    return COMPARISONS[how](*pair)


def _vectors(ra: Any, dec: Any) -> NDArray[np.float64]:
    a, d = np.radians(np.asarray(ra, dtype=np.float64)), np.radians(np.asarray(dec, dtype=np.float64))
    return np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=-1)


def separation(ra: Any, dec: Any, ra2: Any, dec2: Any) -> NDArray[np.float64]:
    """Angle between positions, degrees in and out."""
    chord = np.linalg.norm(_vectors(ra, dec) - _vectors(ra2, dec2), axis=-1)
    return np.asarray(2 * np.degrees(np.arcsin(np.clip(chord / 2, 0, 1))))


def _circle(numbers: list[float]) -> Inside:
    ra0, dec0, radius = numbers
    return lambda ra, dec: separation(ra, dec, ra0, dec0) <= radius


def _box(numbers: list[float]) -> Inside:
    ra0, dec0, width, height = numbers
    return lambda ra, dec: (np.abs((ra - ra0 + 180) % 360 - 180) <= width / 2) & (np.abs(dec - dec0) <= height / 2)


def _polygon(numbers: list[float]) -> Inside:
    if len(numbers) < 6 or len(numbers) % 2:
        raise QueryError("a POLYGON wants three corners or more, two numbers each")
    corners = _vectors(numbers[::2], numbers[1::2])
    normals = np.cross(corners, np.roll(corners, -1, axis=0))
    sides = corners @ normals.T
    turn = 1.0 if sides.sum() >= 0 else -1.0
    if (sides * turn < -1e-12).any():
        raise QueryError("a POLYGON here is convex; divide it")
    return lambda ra, dec: np.asarray(((_vectors(ra, dec) @ normals.T) * turn >= 0).all(axis=1))


REGIONS: Mapping[str, tuple[Callable[[list[float]], Inside], int | None]] = {
    "CIRCLE": (_circle, 3),
    "BOX": (_box, 4),
    "POLYGON": (_polygon, None),
}


def _numbers(value: Any, n: int) -> NDArray[np.float64]:
    filled = _filled(value, n)
    return np.asarray(filled.cast(pa.float64()).to_numpy(), dtype=np.float64)


class _Parser:
    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str]] = []
        self.at = 0
        place, text = 0, text.rstrip()
        while place < len(text):
            found = TOKEN.match(text, place)
            if found is None:
                raise QueryError(f"Incorrect ADQL query: {text[place : place + 20]!r} is not understood")
            self.tokens.append((str(found.lastgroup), found[str(found.lastgroup)]))
            place = found.end()
        self.names = {""}
        self.qualifiers: set[str] = set()

    def query(self) -> Query:
        query = Query()
        self.need("SELECT")
        if self.word("TOP"):
            query.top = self.whole_number()
        query.items.append(self.item())
        while self.symbol(","):
            query.items.append(self.item())
        self.need("FROM")
        query.table = self.table_name()
        if self.word("WHERE"):
            query.where = self.expression()
        if self.word("ORDER"):
            self.need("BY")
            query.order.append(self.order())
            while self.symbol(","):
                query.order.append(self.order())
        if self.word("OFFSET"):
            query.offset = self.whole_number()
        self.symbol(";")
        if self.at < len(self.tokens):
            raise self.unexpected("the end of the query")
        if strange := self.qualifiers - self.names:
            raise QueryError(f"1 unresolved identifiers: {min(strange)}")
        return query

    def kind(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else "end"

    def text(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead][1] if self.at + ahead < len(self.tokens) else "the end"

    def unexpected(self, wanted: str) -> QueryError:
        return QueryError(f"Incorrect ADQL query: Encountered {self.text()!r}. Was expecting {wanted}")

    def word(self, word: str) -> bool:
        found = self.kind() == "name" and self.text().upper() == word
        self.at += found
        return found

    def symbol(self, *symbols: str) -> str:
        if self.kind() == "symbol" and self.text() in symbols:
            self.at += 1
            return self.tokens[self.at - 1][1]
        return ""

    def need(self, what: str) -> None:
        if not (self.word(what) or self.symbol(what)):
            raise self.unexpected(repr(what))

    def whole_number(self) -> int:
        if self.kind() != "number" or not self.text().isdigit():
            raise self.unexpected("a whole number")
        self.at += 1
        return int(self.tokens[self.at - 1][1])

    def identifier(self) -> str:
        if self.kind() != "name" or self.text().upper() in RESERVED:
            raise self.unexpected("a name")
        self.at += 1
        return self.tokens[self.at - 1][1].strip('"')

    def dotted(self) -> list[str]:
        parts = [self.identifier()]
        while self.symbol("."):
            parts.append(self.identifier())
        return parts

    def table_name(self) -> str:
        parts = self.dotted()
        name = ".".join(parts).lower()
        self.names |= {name, parts[-1].lower()}
        if self.word("AS") or (self.kind() == "name" and self.text().upper() not in RESERVED):
            self.names.add(self.identifier().lower())
        return name

    def item(self) -> tuple[str | None, Node | None]:
        if self.symbol("*"):
            return None, None
        if self.kind() == "name" and self.text(1) == "." and self.text(2) == "*":
            self.qualifiers.add(self.identifier().lower())
            self.at += 2
            return None, None
        node = self.expression()
        if self.word("AS") or (self.kind() == "name" and self.text().upper() not in RESERVED):
            return self.identifier(), node
        return node.column, node

    def order(self) -> tuple[Node, bool]:
        node = self.expression()
        down = self.word("DESC")
        return node, down or (self.word("ASC") and False)

    def expression(self) -> Node:
        node = self.conjunction()
        while self.word("OR"):
            node = _two(pc.or_kleene, node, self.conjunction())
        return node

    def conjunction(self) -> Node:
        node = self.negation()
        while self.word("AND"):
            node = _two(pc.and_kleene, node, self.negation())
        return node

    def negation(self) -> Node:
        if self.word("NOT"):
            return _one(pc.invert, self.negation())
        return self.comparison()

    def comparison(self) -> Node:
        left = self.sum()
        if how := self.symbol(*COMPARISONS):
            return _two(lambda a, b: _compare(how, a, b), left, self.sum())
        if self.word("IS"):
            other = self.word("NOT")
            self.need("NULL")
            return _one(pc.is_valid if other else pc.is_null, left)
        other = self.word("NOT")
        if self.word("BETWEEN"):
            low = self.sum()
            self.need("AND")
            high = self.sum()
            within = _two(pc.and_kleene, _two(pc.greater_equal, left, low), _two(pc.less_equal, left, high))
            return _one(pc.invert, within) if other else within
        if self.word("IN"):
            self.need("(")
            among = [self.literal()]
            while self.symbol(","):
                among.append(self.literal())
            self.need(")")
            return _one(lambda value: _within(value, among, other), left)
        if other:
            raise self.unexpected("BETWEEN or IN")
        return left

    def literal(self) -> Any:
        sign = -1 if self.symbol("-") else 1
        kind, text = self.kind(), self.text()
        if kind == "string" and sign == 1:
            self.at += 1
            return text[1:-1].replace("''", "'")
        if kind == "number":
            self.at += 1
            return sign * (int(text) if text.isdigit() else float(text))
        raise self.unexpected("a number or a text")

    def sum(self) -> Node:
        node = self.product()
        while how := self.symbol("+", "-"):
            node = _two(pc.add if how == "+" else pc.subtract, node, self.product())
        return node

    def product(self) -> Node:
        node = self.factor()
        while how := self.symbol("*", "/"):
            node = _two(pc.multiply if how == "*" else pc.divide, node, self.factor())
        return node

    def factor(self) -> Node:
        if self.symbol("-"):
            if self.kind() == "number":
                self.at -= 1
                return _constant(self.literal())
            return _one(pc.negate, self.factor())
        self.symbol("+")
        if self.symbol("("):
            node = self.expression()
            self.need(")")
            return node
        if self.kind() in ("number", "string"):
            return _constant(self.literal())
        if self.kind() == "name" and self.text(1) == "(":
            return self.function()
        *where, name = self.dotted()
        self.qualifiers.add(".".join(where).lower())
        return _column(name)

    def function(self) -> Node:
        name = self.identifier().upper()
        self.need("(")
        if name == "DISTANCE":
            ra, dec = self.place()
            ra2, dec2 = self.after(self.place)
            self.need(")")

            def distance(table: pa.Table) -> Any:
                n = table.num_rows
                numbers = (_numbers(node.of(table), n) for node in (ra, dec, ra2, dec2))
                return pa.array(separation(*numbers), from_pandas=True)

            return Node(distance, unit="deg")
        if name == "CONTAINS":
            ra, dec = self.point()
            inside = self.after(self.region)
            self.need(")")
            return _in_region(ra, dec, inside, pa.int32())
        if name == "Q3C_RADIAL_QUERY":
            ra, dec = self.sum(), self.after(self.sum)
            numbers = [self.after(self.number) for _ in range(3)]
            self.need(")")
            return _in_region(ra, dec, _circle(numbers), pa.bool_())
        raise QueryError(f"1 unresolved identifiers: {name}(...) is no function that this server knows")

    def after(self, what: Callable[[], Any]) -> Any:
        self.need(",")
        return what()

    def number(self) -> float:
        value = self.literal()
        if isinstance(value, str):
            raise QueryError(f"Incorrect ADQL query: {value!r} stands where a number is wanted")
        return float(value)

    def frame(self) -> None:
        if self.kind() == "string":
            if str(self.literal()).upper() not in ("ICRS", ""):
                raise QueryError("positions are ICRS here")
            self.need(",")

    def place(self) -> tuple[Node, Node]:
        return self.point() if self.text().upper() == "POINT" else (self.sum(), self.after(self.sum))

    def point(self) -> tuple[Node, Node]:
        self.need("POINT")
        self.need("(")
        self.frame()
        pair = self.sum(), self.after(self.sum)
        self.need(")")
        return pair

    def region(self) -> Inside:
        name = self.identifier().upper()
        if name not in REGIONS:
            raise QueryError(f"1 unresolved identifiers: {name}(...) is no region; there are {', '.join(REGIONS)}")
        self.need("(")
        self.frame()
        numbers = [self.number()]
        while self.symbol(","):
            numbers.append(self.number())
        self.need(")")
        make, n = REGIONS[name]
        if n is not None and len(numbers) != n:
            raise QueryError(f"{name} wants {n} numbers, not {len(numbers)}")
        return make(numbers)


def _constant(value: Any) -> Node:
    scalar = pa.scalar(value)
    return Node(lambda table: scalar)


def _one(how: Callable[[Any], Any], node: Node) -> Node:
    return Node(lambda table: how(node.of(table)))


def _two(how: Callable[[Any, Any], Any], left: Node, right: Node) -> Node:
    return Node(lambda table: how(left.of(table), right.of(table)))


def _within(value: Any, among: list[Any], other: bool) -> Any:
    found = pc.is_in(value, value_set=pa.array(among).cast(value.type))
    found = pc.invert(found) if other else found
    return pc.if_else(pc.is_null(value), pa.scalar(None, pa.bool_()), found)


def _in_region(ra: Node, dec: Node, inside: Inside, kind: pa.DataType) -> Node:
    def value(table: pa.Table) -> Any:
        n = table.num_rows
        with np.errstate(invalid="ignore"):
            return pa.array(inside(_numbers(ra.of(table), n), _numbers(dec.of(table), n))).cast(kind)

    return Node(value)
