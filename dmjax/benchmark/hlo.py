"""Reads an optimised program as XLA prints it: what runs, how often, and what it reads and writes.

XLA's own analysis counts the body of a loop once. Here every instruction counts as often as it runs: a loop's body as
often as its counter says, of a conditional the branch that costs most. Cycles are the compiler's own estimates, which
only programs for TPUs carry.
"""

import collections
import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional", "call", "iota"}
_FREE |= {"after-all", "partition-id", "replica-id", "async-done", "copy-done", "optimization-barrier"}
_ROWS_ONLY = {"gather", "dynamic-slice", "slice"}  # read of their first operand what they put out

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^  (?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r" ([a-z][a-z0-9\-]*)\(")
_ARRAY = re.compile(r"([a-z]+[0-9]+[a-z0-9]*|pred)\[([0-9,]*)\](\{[^}]*\})?")
_CALLS = re.compile(r"(?:calls|to_apply|called_computations=\{)=?%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|true_computation=%?([\w.\-]+), false_computation=%?([\w.\-]+)")


class Instruction(NamedTuple):
    """One instruction of an optimised program.

    Attributes:
      name: Unique in the program.
      shape: What it gives, as printed.
      opcode: `fusion`, `convolution`, ...
      operands: Names of instructions.
      text: Everything behind the operands: windows, called computations, metadata.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    text: str

    @property
    def cycles(self) -> int:
        """Estimated cycles of one execution; 0 where the compiler gives none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.text)
        return int(found.group(1)) if found else 0


class Executed(NamedTuple):
    """An instruction, and how often it runs."""

    instruction: Instruction
    times: float


class Program:
    """An optimised program.

    Attributes:
      executed: Every instruction that runs, those inside of fusions not among them.
    """

    def __init__(self, text: str):
        self._computations: dict[str, dict[str, Instruction]] = {}
        entry = ""
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if head := _COMPUTATION.match(line):
                current = self._computations[head.group(2)] = {}
                entry = head.group(2) if head.group(1) else entry
            elif found := _INSTRUCTION.match(line):
                instruction = _parse(*found.groups())
                current[instruction.name] = instruction
        self._source = _Source(text)
        self.executed = list(self._walk(entry, 1))

    def cycles(self) -> float:
        """Estimated cycles of the program."""
        return sum(times * instruction.cycles for instruction, times in self.executed)

    def flops(self) -> float:
        """Operations of convolutions and matrix products."""
        return sum(times * self._flops(self._computation_of(i), i) for i, times in self._with_fused())

    def traffic(self) -> float:
        """Bytes that instructions read from and write to the memory of the chip, not what stays in on-chip memory."""
        return sum(times * self.moved(instruction) for instruction, times in self.executed)

    def moved(self, instruction: Instruction) -> int:
        """Bytes that one execution reads and writes; of an array from which rows are taken, these rows."""
        read, written = self.operands(instruction)
        return sum(read) + written

    def operands(self, instruction: Instruction) -> tuple[list[int], int]:
        """Bytes that an execution reads of each operand, and those that it writes."""
        if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
            return [], 0
        scope = self._computation_of(instruction)
        fused = self._computations.get(_called(instruction), {}) if instruction.opcode == "fusion" else {}
        parameters = {i.text: i for i in fused.values() if i.opcode == "parameter"}
        read, in_place = [], 0
        for position, operand in enumerate(instruction.operands):
            if operand not in scope:
                continue
            whole = _bytes(scope[operand].shape)
            if instruction.opcode in _ROWS_ONLY and position == 0:
                whole = min(whole, _bytes(instruction.shape))
            elif (parameter := parameters.get(str(position))) is not None:
                taken, updated = _taken(fused, parameter.name, whole)
                whole, in_place = taken, in_place + updated
            read.append(whole)
        if instruction.opcode == "dynamic-update-slice" and len(read) > 1:
            return read[1:], read[1]
        return read, max(0, _bytes(instruction.shape) - in_place)

    def collectives(self) -> dict[str, int]:
        """How many collectives of each kind an execution of the program has."""
        counts: collections.Counter[str] = collections.Counter()
        for instruction, times in self.executed:
            name = instruction.opcode.removesuffix("-start")
            if name in COLLECTIVES:
                counts[name] += round(times)
        return dict(counts)

    def library_calls(self) -> dict[str, int]:
        """Custom calls, by name and how often they run."""
        counts: collections.Counter[str] = collections.Counter()
        for instruction, times in self.executed:
            if found := re.search(r'custom_call_target="([^"]*)"', instruction.text):
                counts[found.group(1)] += round(times)
        return dict(counts.most_common())

    def by_line(self, cost: Mapping[str, float]) -> list[tuple[str, float]]:
        """Source lines of the package with what the instructions of each cost, the most expensive first.

        Args:
          cost: Of one execution, by the name of the instruction.
        """
        lines: collections.Counter[str] = collections.Counter()
        for instruction, times in self.executed:
            lines[self._source.line(instruction)] += times * cost[instruction.name]  # type: ignore[assignment]
        return lines.most_common()

    def _walk(self, computation: str, times: float) -> Iterator[Executed]:
        for instruction in self._computations[computation].values():
            yield Executed(instruction, times)
            if instruction.opcode == "while":
                condition = re.search(r"condition=%?([\w.\-]+)", instruction.text)
                body = re.search(r"body=%?([\w.\-]+)", instruction.text)
                assert condition, "a loop without a condition"
                assert body, "a loop without a body"
                yield from self._walk(body.group(1), times * self._trips(instruction, condition.group(1)))
            elif instruction.opcode == "conditional":
                yield from max((list(self._walk(name, times)) for name in _branches(instruction)), key=self._weight)
            elif instruction.opcode in ("call", "async-start") and _called(instruction):
                yield from self._walk(_called(instruction), times)

    def _weight(self, executed: list[Executed]) -> tuple[float, float]:
        cycles = sum(times * instruction.cycles for instruction, times in executed)
        return cycles, sum(times * self.moved(instruction) for instruction, times in executed)

    def _trips(self, loop: Instruction, condition: str) -> int:
        """How often a loop runs; its counter starts at 0 and is compared with a constant."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.text):
            return int(known.group(1))
        constants = [i for i in self._computations[condition].values() if i.opcode == "constant"]
        numbers = [int(i.operands[0]) for i in constants if i.operands and i.operands[0].isdigit()]
        return max(numbers, default=1)

    @functools.cached_property
    def _scope(self) -> dict[str, dict[str, Instruction]]:
        return {name: scope for scope in self._computations.values() for name in scope}

    def _computation_of(self, instruction: Instruction) -> dict[str, Instruction]:
        return self._scope[instruction.name]

    def _with_fused(self) -> Iterator[Executed]:
        for instruction, times in self.executed:
            yield Executed(instruction, times)
            if instruction.opcode == "fusion":
                for inner in self._computations[_called(instruction)].values():
                    yield Executed(inner, times)
                    if inner.opcode == "fusion":  # a fusion in a fusion
                        yield from (Executed(i, times) for i in self._computations[_called(inner)].values())

    def _flops(self, scope: dict[str, Instruction], instruction: Instruction) -> float:
        if instruction.opcode not in ("convolution", "dot"):
            return 0.0
        out = math.prod(_dimensions(instruction.shape))
        left, right = (_dimensions(scope[name].shape) for name in instruction.operands[:2])
        if instruction.opcode == "dot":
            contracted = re.search(r"lhs_contracting_dims=\{([0-9,]*)\}", instruction.text)
            return 2.0 * out * math.prod(left[int(i)] for i in contracted.group(1).split(",") if contracted and i)  # type: ignore[union-attr]
        labels = re.search(r"dim_labels=\w+_(\w+)->", instruction.text)
        assert labels, "a convolution without labels"
        return 2.0 * out * math.prod(n for n, label in zip(right, labels.group(1), strict=True) if label != "o")


class _Source:
    """Where instructions come from: the innermost line of the package in the stack of each."""

    def __init__(self, text: str):
        tables = {name: _table(text, name) for name in ("FileNames", "FileLocations", "StackFrames")}
        self._files = {n: line.strip('"') for n, line in tables["FileNames"].items()}
        self._places = {n: _numbers(line) for n, line in tables["FileLocations"].items()}
        self._frames = {n: _numbers(line) for n, line in tables["StackFrames"].items()}

    def line(self, instruction: Instruction) -> str:
        """`file.py:12`, or what the instruction is called in the traced program, or its own name."""
        found = re.search(r"stack_frame_id=(\d+)", instruction.text)
        at = int(found.group(1)) if found else 0
        while at in self._frames:
            place = self._places[self._frames[at]["file_location_id"]]
            file = self._files[place["file_name_id"]]
            if "/dmjax/" in file:
                return f"dmjax/{file.rpartition('/dmjax/')[2]}:{place['line']}"
            at = self._frames[at]["parent_frame_id"] - 1  # counted from 1 where frames count from 0
        name = re.search(r'op_name="([^"]*)"', instruction.text)
        return name.group(1).rpartition("/")[2] if name else instruction.opcode


def _parse(name: str, rest: str) -> Instruction:
    opcode = _OPCODE.search(f" {rest}" if not rest.startswith("(") else rest)
    if opcode is None:
        return Instruction(name, rest, "", (), "")
    offset = 0 if rest.startswith("(") else 1
    shape, start = rest[: max(0, opcode.start() - offset)], opcode.end() - offset
    depth, end = 1, start
    while depth and end < len(rest):
        depth += {"(": 1, ")": -1}.get(rest[end], 0)
        end += 1
    inside = rest[start : end - 1]
    if opcode.group(1) == "parameter":
        return Instruction(name, shape, "parameter", (), inside)
    operands = tuple(part.strip().rpartition("%")[2] for part in re.split(r", (?=%|/\*)", inside) if part.strip())
    return Instruction(name, shape, opcode.group(1), operands, rest[end:])


def _called(instruction: Instruction) -> str:
    found = _CALLS.search(instruction.text)
    return found.group(1) if found else ""


def _branches(instruction: Instruction) -> list[str]:
    found = _BRANCHES.search(instruction.text)
    assert found, "a conditional without branches"
    listed, true, false = found.groups()
    return [name.strip().lstrip("%") for name in listed.split(",")] if listed else [true, false]


def _taken(fused: Mapping[str, Instruction], parameter: str, whole: int) -> tuple[int, int]:
    """Bytes that a fusion reads of a parameter, and those of its result that it leaves as they are in place."""
    names, read = {parameter}, 0
    for user in fused.values():
        used = [i for i, operand in enumerate(user.operands) if operand in names]
        if not used:
            continue
        if user.opcode == "bitcast":
            names.add(user.name)
        elif user.opcode in _ROWS_ONLY and used == [0]:
            read += _bytes(user.shape, everywhere=True)
        elif user.opcode == "dynamic-update-slice" and used == [0]:
            return 0, max(0, whole - _bytes(fused[user.operands[1]].shape, everywhere=True))
        else:
            return whole, 0
    return min(read, whole), 0


def _bytes(shape: str, everywhere: bool = False) -> int:
    """Bytes of all arrays of a shape; those in on-chip memory, `S(1)` in their layout, only if `everywhere`."""
    return sum(
        math.prod(int(n) for n in dimensions.split(",") if n) * _width(kind)
        for kind, dimensions, layout in _ARRAY.findall(shape)
        if everywhere or not re.search(r"S\([1-9]", layout)
    )


def _width(kind: str) -> int:
    bits = re.search(r"\d+", kind)
    return 1 if bits is None else max(1, int(bits.group()) // 8)


def _dimensions(shape: str) -> list[int]:
    """Of the first array of a shape."""
    found = _ARRAY.search(shape)
    return [int(n) for n in found.group(2).split(",") if n] if found else []


def _table(text: str, name: str) -> dict[int, str]:
    found = re.search(rf"^{name}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
    lines = found.group(1).splitlines() if found else []
    return {int(n): value for n, _, value in (line.partition(" ") for line in lines)}


def _numbers(line: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", line)}
