"""The look of the report page: one style sheet, light and dark."""

CSS = """
:root {
  color-scheme: light dark;
  --bg: #f6f7f9; --card: #ffffff; --fg: #14181f; --muted: #5d6675; --line: #e3e6eb; --soft: #eef1f5;
  --accent: #2f5bea; --accent-soft: #dfe7ff; --later: #0f9d8a; --good: #12805c; --good-soft: #e2f5ec;
  --bad: #c8372d; --bad-soft: #fdecea; --window: #c8372d1f; --on-bar: #ffffff;
  --seg-detect: #d9553f; --seg-agree: #ea9a3c; --seg-plan: #e3c340; --seg-relink: #58ab6c;
  --seg-restore: #2f8fd0; --seg-migrate: #6a68d8; --seg-resume: #a85fc4; --seg-redo: #b4bcc9;
}
@media (prefers-color-scheme: dark) {
  :root {
    --bg: #0e1116; --card: #161b22; --fg: #e8ecf2; --muted: #98a2b3; --line: #272e39; --soft: #1d242d;
    --accent: #7f9cff; --accent-soft: #23305c; --later: #3cc7b1; --good: #4cc38a; --good-soft: #12301f;
    --bad: #ff7a6e; --bad-soft: #3a1815; --window: #ff7a6e26; --on-bar: #0e1116;
    --seg-redo: #5b6473;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--fg); font: 15px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; font-variant-numeric: tabular-nums; }
main { max-width: 1080px; margin: 0 auto; padding: 56px 24px 72px; }
header { margin-bottom: 32px; }
.eyebrow { margin: 0 0 10px; color: var(--muted); font-size: 13px; letter-spacing: .02em; }
.eyebrow b { color: var(--fg); font-weight: 600; }
h1 { margin: 0; font-size: clamp(32px, 5vw, 50px); line-height: 1.08; letter-spacing: -.025em; font-weight: 680; }
.lead { margin: 16px 0 0; max-width: 46em; color: var(--muted); font-size: 18px; line-height: 1.5; }
.failures { margin: 20px 0 0; padding: 14px 18px 14px 36px; background: var(--bad-soft); color: var(--bad);
  border-radius: 10px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 32px 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 16px 18px; }
.tile dt { color: var(--muted); font-size: 13px; }
.tile dd { margin: 4px 0 0; font-size: 27px; line-height: 1.15; font-weight: 640; letter-spacing: -.02em; }
.tile p { margin: 4px 0 0; color: var(--muted); font-size: 13px; }
.tile.good dd { color: var(--good); } .tile.bad dd { color: var(--bad); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 16px; padding: 26px 28px 22px;
  margin: 0 0 16px; }
h2 { margin: 0; font-size: 19px; letter-spacing: -.01em; font-weight: 640; }
h3 { margin: 22px 0 8px; font-size: 14px; font-weight: 600; }
section > p.note { margin: 4px 0 16px; color: var(--muted); max-width: 62em; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg + h3 { margin-top: 14px; }
svg text { font-size: 12px; fill: var(--fg); }
.tick { fill: var(--muted); } .mid { text-anchor: middle; } .end { text-anchor: end; }
.tick.bad { fill: var(--bad); font-weight: 600; }
.value { font-weight: 640; }
.grid { stroke: var(--line); stroke-width: 1; }
.loss { stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; }
.reference { stroke: var(--accent-soft); stroke-width: 9; stroke-linejoin: round; stroke-linecap: round; }
.rate { stroke: var(--accent); stroke-width: 1.8; stroke-linejoin: round; }
.area { fill: var(--accent); opacity: .09; }
.fault { stroke: var(--bad); stroke-width: 1; stroke-dasharray: 3 4; opacity: .8; }
.cross { stroke: var(--bad); stroke-width: 2.4; stroke-linecap: round; fill: none; }
.window { fill: var(--window); }
.view { stroke: var(--line); stroke-width: 1; }
.life.first { fill: var(--accent); } .life.later { fill: var(--later); }
svg text.worker { fill: var(--on-bar); font: 11px ui-monospace, Menlo, Consolas, monospace; opacity: .85; }
.seg-detect { fill: var(--seg-detect); background: var(--seg-detect); }
.seg-agree { fill: var(--seg-agree); background: var(--seg-agree); }
.seg-plan { fill: var(--seg-plan); background: var(--seg-plan); }
.seg-relink { fill: var(--seg-relink); background: var(--seg-relink); }
.seg-restore { fill: var(--seg-restore); background: var(--seg-restore); }
.seg-migrate { fill: var(--seg-migrate); background: var(--seg-migrate); }
.seg-resume { fill: var(--seg-resume); background: var(--seg-resume); }
.seg-redo { fill: var(--seg-redo); background: var(--seg-redo); }
.legend { display: flex; flex-wrap: wrap; gap: 6px 18px; margin: 0 0 10px; padding: 0; list-style: none;
  color: var(--muted); font-size: 13px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 7px;
  vertical-align: -1px; }
.legend i.k-own { background: var(--accent); } .legend i.k-ref { background: var(--accent-soft); }
.legend i.k-later { background: var(--later); } .legend i.k-window { background: var(--window); }
.scroll { overflow-x: auto; margin: 0 -28px; padding: 0 28px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; white-space: nowrap; }
th { color: var(--muted); font-weight: 500; font-size: 12.5px; }
th, td { padding: 9px 0 9px 18px; text-align: right; border-bottom: 1px solid var(--line); }
tr:last-child td { border-bottom: 0; }
th.l, td.l { text-align: left; } th:first-child, td:first-child { padding-left: 0; }
td.strong { font-weight: 640; }
td.wrap { white-space: normal; min-width: 220px; }
details { border-top: 1px solid var(--line); padding: 12px 0; } details:first-of-type { margin-top: 16px; }
summary { cursor: pointer; font-weight: 560; }
pre { margin: 10px 0 4px; padding: 14px 16px; background: var(--soft); border-radius: 10px; overflow-x: auto;
  font: 12.5px/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .92em; }
.empty { color: var(--muted); padding: 18px 0; margin: 0; }
footer { color: var(--muted); font-size: 13px; margin-top: 28px; }
@media (max-width: 640px) {
  main { padding: 32px 14px; } section { padding: 20px 16px; } .scroll { margin: 0 -16px; padding: 0 16px; }
  section { overflow-x: auto; } svg { min-width: 640px; }
}
@media print { body { background: #fff; } section, .tile { break-inside: avoid; } }
"""
