"""Results of commands as tables to print: a table is a title and rows, a row a value per column."""

from typing import Any

Rows = list[dict[str, Any]]
Table = tuple[str, Rows]


def pairs(name: str, values: dict[str, Any]) -> Rows:
    """A dictionary as two columns, `name` and `value`."""
    return [{name: key, "value": value} for key, value in values.items()]


def sweep_ranking(result: dict[str, Any]) -> Rows:
    """The runs of a sweep, the best first, those without a result last."""
    criterion = result["criterion"]
    paths = dict.fromkeys(path for run in result["runs"] for path in run["setting"])
    rest = [run["number"] for run in result["runs"] if run["number"] not in result["ranked"]]
    rows = []
    for rank, number in enumerate([*result["ranked"], *rest], 1):
        run = result["runs"][number]
        rows.append(
            {
                "rank": rank if number in result["ranked"] else "",
                "run": run["folder"],
                **{path: str(run["setting"].get(path, "")) for path in paths},
                f"best {criterion}": "" if run["best"] is None else f"{run['best']:.6g}",
                "at step": run["best_step"] or "",
                "state": run["state"],
            }
        )
    return rows
