// The page from its begin: scheme, key, and the stream of looks, taken up again whenever it breaks off.

const WAIT_MILLISECONDS = [500, 1000, 2000, 5000];

let adminKey = "";
const headers = () => (adminKey ? { "x-penstock-admin-key": adminKey } : {});
const panels = new Panels();
const chat = new Chat(headers);

function showState(state, text) {
  byId("state").dataset.state = state;
  setText(byId("state-text"), text);
}

function showGate(refused) {
  byId("gate").hidden = false;
  byId("layout").hidden = true;
  setText(byId("gate-error"), refused ? "That is not the key." : "");
  byId("admin-key").focus();
  showState("waiting", "needs the admin key");
}

byId("gate").addEventListener("submit", (event) => {
  event.preventDefault();
  adminKey = byId("admin-key").value;
  byId("admin-key").value = "";
  byId("gate").hidden = true;
  byId("layout").hidden = false;
  watch(true);
});

function take(event) {
  const data = JSON.parse(event.data);
  if (event.name === "hello") {
    panels.kept = data.points;
    chat.offer(data);
    setText(byId("about"), [data.version, ...data.models.slice(0, 3)].join(" · "));
  } else if (event.name === "past") {
    panels.past(data);
  } else if (event.name === "look") {
    panels.show(data);
    showState("live", "live");
  }
}

async function watch(withKey) {
  for (let tries = 0; ; tries += 1) {
    try {
      const response = await fetch("/dashboard/events", { headers: headers(), cache: "no-store" });
      if (response.status === 401) return showGate(withKey);
      if (response.ok) {
        tries = 0;
        for await (const event of eventsOf(response)) take(event);
      } else {
        showState("lost", await reasonOf(response));
      }
    } catch {
      // Not there, or broken off: the next try tells.
    }
    if (byId("state").dataset.state === "live") showState("lost", "connection lost, trying again");
    await pause(WAIT_MILLISECONDS[Math.min(tries, WAIT_MILLISECONDS.length - 1)]);
  }
}

// As the system has it, until the switch says otherwise; what it said is kept, where the browser keeps anything.
const dark = matchMedia("(prefers-color-scheme: dark)");
const store = {
  get: () => { try { return localStorage.getItem("penstock-scheme"); } catch { return null; } },
  set: (scheme) => { try { localStorage.setItem("penstock-scheme", scheme); } catch { /* it holds for this page */ } },
};
let scheme = store.get();
const isDark = () => (scheme ? scheme === "dark" : dark.matches);

function showScheme() {
  document.documentElement.classList.toggle("dark", scheme === "dark");
  document.documentElement.classList.toggle("light", scheme === "light");
  byId("theme").setAttribute("aria-pressed", String(isDark()));
}

byId("theme").addEventListener("click", () => {
  scheme = isDark() ? "light" : "dark";
  store.set(scheme);
  showScheme();
});
dark.addEventListener("change", showScheme);
showScheme();
watch(false);
