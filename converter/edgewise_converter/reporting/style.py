"""The page's style sheet: light and dark by the reader's own setting, and on paper light."""

from __future__ import annotations

from typing import Final

CSS: Final = """
:root { color-scheme: light dark; --bg: #ffffff; --card: #f6f7f9; --line: #dfe3e8; --text: #16191d; --muted: #5b626b;
  --grid: #e9ecef; --accent: #1b6ac9; --good: #13795b; --good-bg: #dff3ea; --warn: #8a5a00; --warn-bg: #fdf0d5;
  --bad: #a3293d; --bad-bg: #fbe3e6; }
@media (prefers-color-scheme: dark) { :root { --bg: #14171a; --card: #1d2125; --line: #343a41; --text: #e8eaed;
  --muted: #a0a7b0; --grid: #2a2f35; --accent: #6aa9f5; --good: #6fd3ab; --good-bg: #153a2d; --warn: #efc06a;
  --warn-bg: #3d2f10; --bad: #f08c9b; --bad-bg: #45191f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--text); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto,
  "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 6px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 40px 0 12px; }
.muted { color: var(--muted); }
.lead { font-size: 16px; max-width: 75ch; margin: 0 0 20px; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; margin: 20px 0 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 16px; }
.card b { display: block; font-size: 22px; font-weight: 600; font-variant-numeric: tabular-nums; overflow-wrap:
  anywhere; }
.card span { color: var(--muted); font-size: 13px; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th, td { text-align: left; padding: 7px 12px; border-top: 1px solid var(--line); vertical-align: top; }
thead th { border-top: 0; background: var(--card); font-weight: 600; white-space: nowrap; }
.pairs th { white-space: nowrap; font-weight: 600; width: 1%; }
.pairs tr:first-child th, .pairs tr:first-child td { border-top: 0; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.name { font-weight: 500; overflow-wrap: anywhere; min-width: 150px; }
td.why { color: var(--muted); overflow-wrap: anywhere; min-width: 220px; }
tr.winner td { background: var(--good-bg); }
tr.winner td.name { font-weight: 700; }
tr.rejected td { color: var(--muted); }
tr.rejected td.name { font-weight: 400; }
details summary { cursor: pointer; color: var(--accent); font-size: 12.5px; font-weight: 400; }
details ol { margin: 4px 0 2px; padding-left: 18px; font-weight: 400; font-size: 12.5px; color: var(--muted); }
.pill { display: inline-block; padding: 0 9px; border-radius: 10px; font-size: 12px; line-height: 20px; white-space:
  nowrap;
  background: var(--card); border: 1px solid var(--line); }
.pill.winner { background: var(--good); border-color: var(--good); color: var(--bg); font-weight: 600; }
.pill.pareto { color: var(--good); border-color: var(--good); }
.pill.rejected { color: var(--bad); background: var(--bad-bg); border-color: transparent; }
.note { border-left: 3px solid var(--warn); background: var(--warn-bg); padding: 8px 14px; border-radius: 0 6px 6px 0;
  margin: 8px 0; overflow-wrap: anywhere; }
.chart { width: 100%; height: auto; display: block; font: 12px system-ui, -apple-system, "Segoe UI", Roboto,
  sans-serif; }
.chart text { fill: var(--text); }
.chart .tick, .chart .label { fill: var(--muted); }
.chart .tick { font-size: 11.5px; }
.chart .grid { stroke: var(--grid); }
.chart .axis { stroke: var(--muted); stroke-width: 1; }
.chart .leader { stroke: var(--muted); stroke-width: .7; }
.chart .strip { fill: var(--card); }
.chart .front { fill: none; stroke: var(--text); stroke-width: 1.5; stroke-dasharray: 6 4; opacity: .65; }
.chart .dot { stroke: var(--bg); stroke-width: 1.2; }
.chart .ring { fill: none; stroke: var(--text); stroke-width: 2; }
.chart .rejected { fill: var(--bg); stroke: #8a9099; stroke-width: 1.5; }
.chart .strong { font-weight: 700; }
.chart .grey { fill: var(--muted); }
.chart .bar { fill: var(--accent); opacity: .75; }
.chart .bar.kept { fill: #c77f1a; opacity: 1; }
.chart .layer { font-size: 12px; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 20px; align-items: center; color: var(--muted); font-size: 13px;
  margin: 8px 0 0; }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 50%; margin-right: 6px; vertical-align:
  -1px; }
.legend i.ramp { width: 90px; border-radius: 3px; }
.legend i.hollow { border: 1.5px solid #8a9099; }
.legend i.kept { background: #c77f1a; border-radius: 2px; }
.legend i.int { background: var(--accent); opacity: .75; border-radius: 2px; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 16px; overflow-x: auto;
  font-size: 13px; white-space: pre-wrap; overflow-wrap: anywhere; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 12.5px; overflow-wrap:
  anywhere; }
@media print { :root { color-scheme: light; } main { max-width: none; } }
"""
