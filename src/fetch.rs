//! Requests that this program makes on a thread of its own: to the admin API, and to a collector
//! of traces. Both carry a credential, so it goes nowhere but to the server that was configured.

use std::time::Duration;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);

/// A client that follows no redirect and takes no proxy from the environment. Any status is an
/// answer. `patience` is for the whole exchange.
pub fn agent(patience: Duration) -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(None)
        .timeout_connect(Some(CONNECT.min(patience)))
        .timeout_global(Some(patience))
        .build()
        .into()
}
