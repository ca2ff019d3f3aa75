//! The certificate and the roots, without the key.

use std::time::SystemTime;

use serde_json::{Value, json};
use tulle_identity::Current;

pub(super) fn describe(current: &Current) -> Value {
    let svid = current.svid();
    let roots: Vec<_> = current
        .bundle()
        .describe()
        .iter()
        .map(|root| {
            json!({
                "subject": root.subject,
                "serial": root.serial,
                "not_before": time(root.not_before),
                "not_after": time(root.not_after),
            })
        })
        .collect();
    json!({
        "id": svid.id().as_str(),
        "serial": svid.serial(),
        "not_before": time(svid.not_before()),
        "not_after": time(svid.not_after()),
        "valid": current.check().is_ok(),
        "generation": current.generation(),
        "roots": roots,
    })
}

fn time(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(|_| "unknown".into(), |time| format!("{time:.0}"))
}
