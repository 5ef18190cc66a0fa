// What pages need beside htmx: times in the viewer's zone, instants typed in it, and runs that are followed live.
// Without this file every page still works: times are in UTC, and a run is renewed by reloading.
"use strict";
(() => {
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const shown = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

  const localise = () => {
    for (const time of document.querySelectorAll("time[datetime]:not([data-keep])")) {
      const text = shown.format(new Date(time.dateTime));
      if (time.textContent !== text) time.textContent = text;
    }
  };

  // The field takes local time; what is sent is UTC. "latest" and full ISO instants pass as they are.
  const prepareInstant = (field) => {
    const visible = document.createElement("input");
    visible.type = "datetime-local";
    visible.step = "1";
    visible.id = "instant";
    field.type = "hidden";
    field.value = "latest";
    visible.addEventListener("change", () => {
      field.value = visible.value ? new Date(visible.value).toISOString() : "latest";
    });
    field.before(visible);
    const label = field.form.querySelector("[data-zone-label]");
    if (label) label.textContent = `(${zone}; empty = latest)`;
  };

  // Events only say that something changed; what is shown is rendered by the server.
  const follow = (live) => {
    let waiting = null;
    const renew = async () => {
      waiting = null;
      const answer = await fetch(live.dataset.fragment, { headers: { "HX-Request": "true" } });
      if (answer.status === 401) return location.reload();
      if (answer.ok) htmx.swap({ target: live, text: await answer.text(), swap: "innerMorph" });
    };
    const soon = () => { if (waiting === null) waiting = setTimeout(renew, 300); };
    const events = new EventSource(live.dataset.events);
    for (const kind of ["state", "step", "note", "progress"]) events.addEventListener(kind, soon);
    events.addEventListener("end", () => {
      events.close();
      soon();
      for (const form of document.querySelectorAll("[data-until-over]")) form.hidden = true;
    });
  };

  localise();
  new MutationObserver(localise).observe(document.body, { childList: true, characterData: true, subtree: true });
  const place = document.getElementById("zone");
  if (place) place.textContent = `(${zone})`;
  document.querySelectorAll("input[data-instant]").forEach(prepareInstant);
  document.querySelectorAll("[data-events]").forEach(follow);
  // A form is sent once; the key in it makes a second one harmless, this makes it unlikely.
  document.addEventListener("submit", (event) => {
    if (event.target.method === "post") {
      for (const button of event.target.querySelectorAll("button")) setTimeout(() => { button.disabled = true; });
    }
  });
})();
