"""HTTP: wire formats, routes, streaming, metrics. The only folder that knows HTTP."""
