//! The page itself: empty elements, and the one script that fills them.
//!
//! A nonce allows this script and this style sheet, and nothing else: not even a value that was not escaped could run.

use flashjob_charts::{STYLE, escape};

/// Fills elements with what the server sends. Tables that are open stay open.
const SCRIPT: &str = include_str!("live.js");

const OWN_STYLE: &str = "progress { width: 100%; height: 18px; accent-color: var(--s0); }
#log { background: var(--panel); border: 1px solid var(--edge); border-radius: 8px; padding: 10px 14px; overflow-x: auto;
  font: 12px/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
#connection:empty { display: none; }
";

/// The document, and the policy that belongs to it, for a run called `name`.
pub(crate) fn document(name: &str, nonce: &str) -> (String, String) {
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let name = escape(if name.is_empty() { "flashjob" } else { name });
    let document = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<link rel=\"icon\" href=\"data:,\">\n\
         <title>{name} – flashjob, live</title>\n<style nonce=\"{nonce}\">\n{STYLE}{OWN_STYLE}</style>\n</head>\n<body>\n\
         <header>\n<h1>{name}</h1>\n<p class=\"note\" id=\"connection\" role=\"status\"></p>\n<div id=\"now\"></div>\n</header>\n\
         <main>\n<div id=\"tiles\"></div>\n<noscript><p class=\"note\">This page is filled by its script; <a href=\"metrics\">metrics</a> \
         has the values as text.</p></noscript>\n<div class=\"plots\" id=\"plots\"></div>\n<h2>End of the log</h2>\n\
         <pre id=\"log\"></pre>\n</main>\n\
         <footer><p class=\"facts\">Also here: <a href=\"metrics\">metrics</a> in Prometheus' format, <a href=\"healthz\">healthz</a> \
         while the process is alive, <a href=\"readyz\">readyz</a> while requests are served.</p></footer>\n\
         <script nonce=\"{nonce}\">\n{SCRIPT}</script>\n</body>\n</html>\n"
    );
    (document, policy)
}
