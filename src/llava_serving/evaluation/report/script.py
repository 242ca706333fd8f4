"""The script of the report: shows the embedded pictures, filters and sorts the questions."""

SCRIPT = """
'use strict';
const pictures = JSON.parse(document.getElementById('pictures').textContent);
for (const image of document.querySelectorAll('img[data-picture]')) image.src = pictures[image.dataset.picture] || '';
const list = document.getElementById('questions');
const cards = [...list.querySelectorAll('.question')];
const control = id => document.getElementById(id);
const order = {
  id: (a, b) => a.dataset.index - b.dataset.index,
  worst: (a, b) => a.dataset.gap - b.dataset.gap || a.dataset.index - b.dataset.index,
  best: (a, b) => b.dataset.gap - a.dataset.gap || a.dataset.index - b.dataset.index,
};
function apply() {
  const category = control('category').value, verdict = control('verdict').value;
  const words = control('words').value.trim().toLowerCase();
  let shown = 0;
  for (const card of cards) {
    const fits = (!category || card.dataset.category === category) && (!verdict || card.dataset.verdict === verdict)
      && (!words || card.textContent.toLowerCase().includes(words));
    card.hidden = !fits;
    shown += fits;
  }
  control('shown').textContent = `${shown} of ${cards.length} questions`;
}
function sort() {
  list.append(...cards.sort(order[control('sort').value]));
}
for (const id of ['category', 'verdict']) control(id).addEventListener('change', apply);
control('words').addEventListener('input', apply);
control('sort').addEventListener('change', sort);
control('show-boxes').addEventListener('change', event => list.classList.toggle('boxes', event.target.checked));
apply();
"""
