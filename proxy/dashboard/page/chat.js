// A conversation with the server, as any client has one. Under each answer stands what became of it.

class Chat {
  /** `headers()`: what every request of the page brings. */
  constructor(headers) {
    this.headers = headers;
    this.messages = [];
    this.running = null;
    byId("ask").addEventListener("submit", (event) => { event.preventDefault(); this.send(); });
    byId("message").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); this.send(); }
    });
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") this.stop(); });
    byId("stop").addEventListener("click", () => this.stop());
    byId("clear").addEventListener("click", () => this.clear());
  }

  offer(hello) {
    const models = byId("model");
    const chosen = models.value;
    models.replaceChildren(...hello.models.map((name) => new Option(name, name)));
    if (hello.models.includes(chosen)) models.value = chosen;
    byId("key").hidden = byId("key-label").hidden = !hello.needs_key;
  }

  stop() {
    if (this.running) this.running.abort();
  }

  clear() {
    this.stop();
    this.messages = [];
    byId("talk").replaceChildren(byId("talk-empty"));
    byId("talk-empty").hidden = false;
    byId("clear").hidden = true;
    byId("message").focus();
  }

  async send() {
    const text = byId("message").value.trim();
    if (!text || this.running) return;
    byId("message").value = "";
    byId("talk-empty").hidden = true;
    byId("clear").hidden = false;
    byId("talk").append(make("div", "said user", text));
    const messages = [...this.messages, { role: "user", content: text }];
    const whole = await this.answer(messages);
    if (whole != null) this.messages = [...messages, { role: "assistant", content: whole }];
  }

  /** Shows what is answered, and what became of it; the text, or null where it did not come whole. */
  async answer(messages) {
    if (this.running) return null;
    const answer = make("div", "said");
    const told = make("div", "told");
    const talk = byId("talk");
    talk.append(make("div", "", answer, told));
    talk.scrollTop = talk.scrollHeight;
    this.running = new AbortController();
    this.busy(true);
    try {
      return await this.ask(messages, answer, told, this.running.signal);
    } catch (error) {
      const stopped = error.name === "AbortError";
      told.replaceChildren(make("span", stopped ? "" : "bad", stopped ? "stopped" : error.message));
      return null;
    } finally {
      const again = make("button", "link", "ask again");
      again.type = "button";
      again.addEventListener("click", () => this.answer(messages));
      told.append(again);
      this.running = null;
      this.busy(false);
      talk.scrollTop = talk.scrollHeight;
    }
  }

  async ask(messages, answer, told, signal) {
    const started = performance.now();
    const id = crypto.getRandomValues(new Uint32Array(4)).reduce((text, part) => text + part.toString(16).padStart(8, "0"), "page-");
    const headers = { ...this.headers(), "Content-Type": "application/json", "x-request-id": id };
    if (byId("key").value) headers.Authorization = `Bearer ${byId("key").value}`;
    if (byId("fresh").checked) headers["x-penstock-cache-control"] = "no-cache, no-store";
    const body = {
      model: byId("model").value, messages, stream: true, stream_options: { include_usage: true }, temperature: 0,
    };
    const response = await fetch("/v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
    if (!response.ok) throw new Error(await reasonOf(response));
    const talk = byId("talk");
    let text = "";
    let first = null;
    let usage = null;
    for await (const event of eventsOf(response)) {
      if (event.data === "[DONE]") break;
      const chunk = JSON.parse(event.data);
      if (chunk.error) throw new Error(chunk.error.message);
      usage = chunk.usage || usage;
      const piece = chunk.choices.length ? chunk.choices[0].delta.content || "" : "";
      if (piece) {
        if (first == null) first = performance.now();
        text += piece;
        const following = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 40;
        answer.append(piece);
        if (following) talk.scrollTop = talk.scrollHeight;
      }
    }
    const took = { first: first == null ? null : (first - started) / 1000, whole: (performance.now() - started) / 1000 };
    await this.tell(told, response.headers, usage, took, id);
    return text;
  }

  async tell(told, headers, usage, took, id) {
    const rung = headers.get("x-penstock-cache") || "none";
    const facts = [make("span", "rung", make("span", `key ${rung}`), rung), make("span", "", headers.get("x-penstock-model") || "")];
    if (headers.get("x-penstock-route")) facts.push(make("span", "", headers.get("x-penstock-route")));
    if (headers.get("x-penstock-similarity")) facts.push(make("span", "", `similarity ${headers.get("x-penstock-similarity")}`));
    if (usage) facts.push(make("span", "", `${count(usage.prompt_tokens)} + ${count(usage.completion_tokens)} tokens`));
    facts.push(make("span", "", `first ${inWords(took.first)}, whole ${inWords(took.whole)}`));
    if (headers.get("x-penstock-saved-ms")) facts.push(make("span", "", `saved ${inWords(headers.get("x-penstock-saved-ms") / 1000)}`));
    told.replaceChildren(...facts);
    const known = await this.costOf(id);
    if (known && known.cost != null)
      told.append(make("span", "", `cost ${money(known.cost)}${known.saved_cost ? `, saved ${money(known.saved_cost)}` : ""}`));
  }

  /** The server counts an answer when its last byte is gone: a moment after we have it. */
  async costOf(id) {
    for (let tries = 0; tries < 3; tries += 1) {
      const response = await fetch(`/dashboard/requests/${id}?wait=${tries}`, { headers: this.headers() }).catch(() => null);
      if (response && response.ok) return response.json();
      await pause(100);
    }
    return null;
  }

  busy(is) {
    byId("send").disabled = is;
    byId("stop").hidden = !is;
    byId("talk").setAttribute("aria-busy", String(is));
  }
}

async function reasonOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status}.`;
  }
}
