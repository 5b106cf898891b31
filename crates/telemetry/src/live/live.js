"use strict";
const connection = document.getElementById("connection");
const fill = (id, html) => {
  const element = document.getElementById(id);
  if (!element) return;
  // innerHTML never runs scripts, and the policy of the page would not let it.
  const open = new Set();
  for (const details of element.querySelectorAll("details[open]")) open.add(details.closest("figure")?.id);
  element.innerHTML = html;
  for (const details of element.querySelectorAll("details")) details.open = open.has(details.closest("figure")?.id);
};
const shown = new Map();
const follow = () => {
  const events = new EventSource("events");
  events.addEventListener("update", (event) => {
    connection.textContent = "";
    for (const [id, html] of Object.entries(JSON.parse(event.data))) {
      if (shown.get(id) === html) continue;
      shown.set(id, html);
      fill(id, html);
    }
  });
  events.addEventListener("end", () => {
    events.close();
    connection.textContent = "The job is ending and answers no more. Its report is report.html in the results directory.";
  });
  events.onerror = () => {
    connection.textContent = "No connection to the job: it has ended, or too many pages are open. Trying again.";
    // The browser tries again by itself, but for an answer that refuses.
    if (events.readyState === EventSource.CLOSED) setTimeout(follow, 5000);
  };
};
follow();
