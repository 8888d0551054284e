"""A soak's account as a person reads it."""

from __future__ import annotations

from typing import Any


def passed(result: dict[str, Any]) -> bool:
    return not result["problems"]


def text(result: dict[str, Any]) -> str:
    """The report, in Markdown."""
    settings, seconds = result["settings"], result["seconds"]
    verdict = "passed" if passed(result) else "FAILED"
    slope = result["memory_slope_mb_per_min"]
    lines = [
        f"# nevstream soak: {verdict}",
        "",
        (
            f"{settings['vehicles']} vehicles, {settings['minutes']:g} minutes of faults, seed {settings['seed']}; "
            f"{settings['gateways']} gateways, {settings['pipelines']} pipelines; {seconds['all']:.0f} s in all."
        ),
        f"{sum(result['faults'].values())} faults, {result['kills']} of them SIGKILLs.",
        "",
        "| frames | |",
        "|---|---|",
        f"| sent | {result['sent']:,} (and {result['resent']:,} sent again) |",
        f"| acknowledged | {result['acked']:,} |",
        f"| stored | {result['stored']:,} (expected {result['expected_stored']:,}) |",
        f"| refused with a reason | {result['rejected']:,} (planted {result['expected_rejected']:,}) |",
        f"| **lost** | **{result['lost']}** |",
        f"| **stored twice** | **{result['duplicated']}** |",
        (
            f"| statistics as made anew | {'yes' if result['statistics_equal'] else 'NO'} "
            f"({sum(result['statistics_rows'].values()):,} rows in {len(result['statistics_rows'])} tables) |"
        ),
        f"| acknowledged within | p50 {result['ack_p50_ms']} ms, p99 {result['ack_p99_ms']} ms |",
        f"| connections made, lost | {result['connects']:,}, {result['drops']:,} |",
        f"| memory slope, gateway and pipeline | {'too short to say' if slope is None else f'{slope:+.2f} MB/min'} |",
        "| most memory | " + ", ".join(f"{k} {v:.0f} MB" for k, v in sorted(result["memory_most_mb"].items())) + " |",
        "",
        "| fault | times |",
        "|---|---|",
        *(f"| {name} | {times} |" for name, times in result["faults"].items()),
        *(f"| {name} | without a victim {times} |" for name, times in result["faults_missed"].items()),
        *(f"| {name} | left out: needs {needs} |" for name, needs in result["faults_left_out"].items()),
    ]
    if result["problems"]:
        lines += ["", "## What is wrong", "", *(f"* {problem}" for problem in result["problems"])]
    return "\n".join(lines) + "\n"
