"""Acme's commands, as docs/sender.md sends them."""

from typing import Any

from arc_agent import Context, handler


@handler("reports.generate")
def generate(params: dict[str, str]) -> dict[str, Any]:
    return {"month": params["month"], "rows": 1204}


@handler("db.vacuum")
def vacuum(ctx: Context) -> None:
    ctx.log.info("vacuum.begun")
    ctx.progress(1, 1, "tables")


@handler("tables.import")
def import_table(params: dict[str, int]) -> int:
    return params["rows"]


@handler("tables.export")
def export_table(params: dict[str, str]) -> bytes:
    return b"id,name\n1,Ann\n"


@handler("images.resize")
def resize(params: bytes) -> bytes:
    return params[:100]
