"""The table of what noise every parameter gets."""

from collections.abc import Sequence
from typing import NamedTuple

from zojax.activations.noise import Layout
from zojax.activations.plan import Plan, Row


class Description(NamedTuple):
    """What noise every parameter gets; printing it shows the table.

    Attributes:
      rows: one `Row` per floating-point parameter.
      num_sites: places where a parameter under noise per example meets its input.
      dimensions: numbers that are perturbed per example.
      remarks: one per row.
    """

    rows: tuple[Row, ...]
    num_sites: int
    dimensions: int
    remarks: tuple[str, ...]

    def __str__(self) -> str:
        """The table."""
        header = ("parameter", "shape", "noise on", "numbers per reward", "one reward per", "")
        body = [
            (r.path, str(r.shape), r.mode, str(r.dimensions), r.reward, remark)
            for r, remark in zip(self.rows, self.remarks, strict=True)
        ]
        return table((header, *body))


def describe_plan(plan: Plan, layout: Layout) -> Description:
    """Puts a plan into a table.

    Args:
      plan: what every parameter gets.
      layout: of its noise.
    """
    sharing = {s.leaf for i, s in enumerate(plan.sites) if plan.roots[i] != i}
    remarks = []
    for leaf, row in plan.rows.items():
        shared = "shares the noise of the layer it is added to" if leaf in sharing else ""
        remarks.append(row.why if row.mode in ("weights", "unused") else shared)
    rows = tuple(plan.rows.values())
    return Description(rows, len(plan.sites), layout.per_example, tuple(remarks))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Aligns cells in columns.

    Args:
      rows: of equally many cells; the first is the header.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
