//! Durations, the sidecar's environment, and the app's probes in it.
//!
//! The input is lines of `NAME=VALUE` that come over a good environment. Whatever is in it, reading it gives either a
//! sidecar that means what the values say, or an error that names each bad variable. A duration that is taken is what
//! its digits and unit say.

#![no_main]

use std::collections::HashMap;
use std::time::Duration;

use tulle_proxy::settings::Startup;
use tulle_runtime::env::{Env, parse_duration};
use tulle_runtime::names::variables;

const GOOD: [(&str, &str); 4] = [
    (variables::POD_NAME, "web-1"),
    (variables::POD_NAMESPACE, "shop"),
    (variables::POD_IP, "10.1.2.3"),
    (variables::SERVICE_ACCOUNT, "web"),
];

tulle_fuzz::target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    text.lines().for_each(duration);
    let mut variables: HashMap<&str, &str> = HashMap::from(GOOD);
    variables.extend(text.lines().filter_map(|line| line.split_once('=')));
    match Startup::from_env(Env::from_pairs(variables.clone())) {
        Ok(startup) => agrees(&startup, &variables),
        Err(error) => {
            let error = error.to_string();
            assert!(variables.keys().any(|name| error.contains(name)), "{error}");
        }
    }
});

fn duration(text: &str) {
    let Ok(duration) = parse_duration(text) else {
        return;
    };
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let number: u128 = text[..text.len() - unit.len()].parse().expect("digits");
    let scale = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        other => panic!("{other} is no unit"),
    };
    assert_eq!(duration.as_millis(), number * scale);
}

/// What was read is what was written.
fn agrees(startup: &Startup, variables: &HashMap<&str, &str>) {
    let value = |name: &str| {
        variables
            .get(name)
            .copied()
            .filter(|value| !value.is_empty())
    };
    assert_eq!(value(variables::POD_NAME), Some(&*startup.pod_name));
    assert_eq!(
        value(variables::POD_NAMESPACE),
        Some(startup.id.namespace())
    );
    assert_eq!(
        value(variables::SERVICE_ACCOUNT),
        Some(startup.id.service_account())
    );
    if let Some(domain) = value(variables::TRUST_DOMAIN) {
        assert_eq!(startup.id.domain(), domain);
    }
    assert!(startup.settings.workers > 0);
    let deadline = value(variables::DRAIN_DEADLINE).map(parse_duration);
    assert_eq!(
        deadline.unwrap_or(Ok(Duration::from_secs(25))),
        Ok(startup.settings.drain_deadline)
    );
    assert_eq!(
        value(variables::DISCOVERY) == Some("wildcard"),
        startup.wildcard
    );
    assert_eq!(
        value(variables::ACCESS_LOG) != Some("off"),
        startup.access_log
    );
    let passthrough = value(variables::UNDISCOVERED) == Some("passthrough");
    assert_eq!(passthrough, startup.settings.passthrough_undiscovered);
}
