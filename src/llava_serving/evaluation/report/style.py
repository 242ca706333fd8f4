"""The style sheet of the report, for wide and narrow screens, light and dark."""

STYLE = """
:root { color-scheme: light dark; --back: #f6f7f9; --card: #fff; --text: #1d2433; --soft: #5a6478; --line: #d9dee7;
  --accent: #2158d0; --good: #1a7f45; --bad: #b3362b; --note: #fff6dd; --note-line: #e0bb52; --track: #b8c8ee; }
@media (prefers-color-scheme: dark) { :root { --back: #12161e; --card: #1b212c; --text: #e6e9f0; --soft: #a2acbf;
  --line: #323b4b; --accent: #8db0ff; --good: #62ca8c; --bad: #ff9287; --note: #2e2a1a; --note-line: #75632c;
  --track: #3d5284; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 1.15rem; margin: 0 0 14px; }
h3 { font-size: .8rem; margin: 0 0 4px; color: var(--soft); font-weight: 600; display: flex; gap: 10px;
  justify-content: space-between; align-items: baseline; }
p { margin: 0 0 10px; overflow-wrap: anywhere; }
.card > .wide { margin-bottom: 14px; }
.soft { color: var(--soft); font-size: .9rem; }
.note { background: var(--note); border: 1px solid var(--note-line); border-radius: 8px; padding: 10px 14px;
  margin: 16px 0; font-size: .95rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px; margin: 0 0 16px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { text-align: right; padding: 7px 8px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; white-space: normal; vertical-align: bottom; line-height: 1.25; }
th:first-child, td:first-child { text-align: left; }
tbody tr:first-child { font-weight: 650; }
.plot { width: 100%; max-width: 760px; margin: 0 0 14px; height: auto; display: block; font-size: 14px; }
.plot text { fill: var(--text); } .plot .name { text-anchor: end; } .plot .value { font-weight: 650; }
.plot .tick { text-anchor: middle; fill: var(--soft); font-size: 12px; }
.plot .grid { stroke: var(--line); } .plot .equal { stroke: var(--soft); stroke-dasharray: 4 4; }
.plot .interval { stroke: var(--track); stroke-width: 9; stroke-linecap: round; } .plot .score { fill: var(--accent); }
.filters { display: flex; flex-wrap: wrap; gap: 12px; align-items: end; position: sticky; top: 0; z-index: 2;
  background: var(--back); padding: 12px 0; border-bottom: 1px solid var(--line); margin-bottom: 16px; }
.filters label { display: grid; gap: 3px; font-size: .8rem; color: var(--soft); }
.filters label.check { display: flex; gap: 6px; align-items: center; min-height: 38px; }
.filters select, .filters input[type=search] { font: inherit; font-size: .95rem; color: var(--text); min-height: 38px;
  background: var(--card); border: 1px solid var(--line); border-radius: 7px; padding: 5px 9px; max-width: 100%; }
.filters output { margin-left: auto; min-height: 38px; display: flex; align-items: center; color: var(--soft); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.question { display: grid; grid-template-columns: 240px minmax(0, 1fr); gap: 20px; }
.question[hidden] { display: none; }
.picture { position: relative; align-self: start; }
.picture img { width: 100%; display: block; border-radius: 7px;
  outline: 1px solid var(--line); background: var(--line); min-height: 60px; }
.picture svg { position: absolute; inset: 0; width: 100%; height: 100%; display: none; }
.boxes .picture svg { display: block; }
.picture rect { fill: none; stroke: #ff2fa0; stroke-width: 2; vector-effect: non-scaling-stroke; }
.asked { font-size: 1.05rem; font-weight: 600; margin: 0 0 12px; }
.tag { display: inline-block; font-size: .78rem; font-weight: 600; color: var(--soft); border: 1px solid var(--line);
  border-radius: 99px; padding: 1px 10px; margin: 0 6px 8px 0; }
.tag.win { color: var(--good); border-color: var(--good); } .tag.loss { color: var(--bad); border-color: var(--bad); }
.tag.unparsable, .tag.unjudged, .tag.unanswered { color: var(--bad); border-style: dashed; border-color: var(--bad); }
.answers { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 20px; }
.answers p, .words { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
.points { font-size: 1rem; font-weight: 650; color: var(--text); font-variant-numeric: tabular-nums; }
details { margin-top: 12px; border-top: 1px solid var(--line); padding-top: 8px; }
summary { cursor: pointer; color: var(--accent); font-size: .9rem; min-height: 28px; }
.words { margin: 6px 0 12px; font-size: .92rem; }
@media (max-width: 700px) { main { padding: 18px 12px 40px; }
  .question, .answers { grid-template-columns: minmax(0, 1fr); }
  .picture { max-width: 280px; } .filters { position: static; } .filters label { flex: 1 1 40%; }
  .filters select, .filters input[type=search] { width: 100%; } .card { padding: 14px; } .answers { gap: 12px; }
  .plot { font-size: 19px; } .plot .tick { font-size: 17px; }
  th, td { padding: 6px 5px; } table { font-size: .82rem; } .filters output { margin-left: 0; } }
@media print { .filters { display: none; } .card { break-inside: avoid; } }
"""
