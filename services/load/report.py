"""The account of a load, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f} ms" if value >= 10 else f"{value:.1f} ms"


def text(account: Mapping[str, Any]) -> str:
    """A dozen lines: what was sent, how fast, what held it back, what became of it."""
    s, gen = account["settings"], account["generator"]
    lines = [
        f"{s['scenario']}, {s['protocol']}: {s['vehicles']:,} vehicles for {account['seconds']:.0f} s, "
        f"{gen['processes']} process{'es' if gen['processes'] > 1 else ''}, window {s['window']}, seed {s['seed']}"
        + (" (ended early)" if account["ended_early"] else ""),
        f"  sent       {account['sent']:>12,}  of {account['planned']:,} due",
        (f"  acked      {account['acked']:>12,}  unanswered {account['unanswered']:,}, refused {account['refused']:,}, "
        f"sent again {account['resent']:,}"),
        (f"  rate       {account['rate_sent']:>12,.0f}  frames/s sent, {account['rate_acked']:,.0f} acked, "
        f"{account['rate_wanted']:,.0f} wanted; {account['frame_bytes']:.0f} bytes each"),
        (f"  ack time   {_ms(account['ack_p50_ms']):>12}  p50, p95 {_ms(account['ack_p95_ms'])}, "
        f"p99 {_ms(account['ack_p99_ms'])}, max {_ms(account['ack_max_ms'])}"),
        (f"  links      {account['connects']:>12,}  connects, all there in {account['connect_seconds']:.1f} s, "
        f"{account['reconnects']:,} reconnects, {account['connections_lost']:,} lost, "
        f"{account['connections_failed']:,} failed"),
    ]  # fmt: skip
    if account["errors"]:
        lines.append("  errors     " + ", ".join(f"{kind}: {n:,}" for kind, n in sorted(account["errors"].items())))
    if account["first_report_dated_s_before_start"]:
        back = account["first_report_dated_s_before_start"]
        lines.append(
            f"  clocks     vehicles report more than once a second: reports are dated a second apart all the same, "
            f"from {back:,.0f} s before the start"
        )
    if storm := account["storm"]:
        took = storm["seconds_until_all_served"]
        said = (
            f"all served again after {took:.1f} s" if took is not None
            else f"{storm['unserved']:,} had no report acked until the end"
        )  # fmt: skip
        lines.append(
            f"  storm      {storm['vehicles']:>12,}  vehicles lost their link at {storm['at_s']:.0f} s, {said}"
        )
    evidence = account["evidence"]
    lines.append(f"  limited by {account['limited_by']:>12}  {account['because']}")
    queued = evidence["loop_queued_for_cpu_share"]
    lines.append(
        f"             {'':>12}  generator: {evidence['loop_running_share']:.0%} of its busiest loop running, "
        + ("" if queued is None else f"{queued:.0%} waiting for a processor, ")
        + f"{evidence['loop_waiting_share']:.0%} idle; {gen['cpu_share_of_machine']:.0%} of this machine's processors"
    )
    found = account.get("reconciliation")
    if found is None:
        lines.append(f"  reconciled {'no':>12}  {account.get('not_reconciled', '')}")
    else:
        lines.append(f"  reconciled {'yes' if found['ok'] else 'NO':>12}  {found['words']}")
    return "\n".join(lines) + "\n"
