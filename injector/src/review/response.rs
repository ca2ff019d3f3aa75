//! Answers, as the API server reads them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::Admitted;
use super::request::{API_VERSION, KIND, Request};
use super::verdict::{Malformed, Refused, tidy};

/// Longest warning that the API server passes on whole. Of all warnings together it passes on 4096 characters.
const MAX_WARNING: usize = 256;
/// As many warnings as it passes on if each is that long.
const MAX_WARNINGS: usize = 16;

/// Lets the object in, with a patch if it is to be injected. The decision goes to the audit log, too.
pub(super) fn allowed(uid: &str, admitted: &Admitted) -> Vec<u8> {
    let mut response = json!({
        "uid": uid,
        "allowed": true,
        "auditAnnotations": { "decision": admitted.decision.to_string() },
    });
    if let Some(patch) = &admitted.patch {
        response["patchType"] = json!("JSONPatch");
        response["patch"] = json!(STANDARD.encode(patch));
    }
    if !admitted.warnings.is_empty() {
        let warnings = admitted.warnings.iter().take(MAX_WARNINGS);
        response["warnings"] = warnings
            .map(|line| tidy(&line.message, MAX_WARNING))
            .collect();
    }
    review(&response)
}

/// Keeps the object out: its author reads the message, and tools the field.
pub(super) fn denied(request: &Request, refused: &Refused, message: &str) -> Vec<u8> {
    let (code, reason) = refused.status();
    let mut status = json!({
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    });
    if let Some(field) = refused.field() {
        status["details"] = json!({
            "kind": "Pod",
            "name": request.name(),
            "causes": [{ "reason": "FieldValueInvalid", "field": tidy(field, MAX_WARNING), "message": message }],
        });
    }
    review(&json!({ "uid": request.uid, "allowed": false, "status": status }))
}

/// Says that there was no review to answer.
pub(super) fn failed(malformed: &Malformed, message: &str) -> Vec<u8> {
    status(malformed.status(), malformed.reason(), message)
}

/// A `Status`: the API server shows whoever made the object what it says, while of other bodies it may keep the text to
/// itself.
pub(super) fn status(code: u16, reason: &str, message: &str) -> Vec<u8> {
    let status = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    });
    status.to_string().into_bytes()
}

fn review(response: &Value) -> Vec<u8> {
    json!({ "apiVersion": API_VERSION, "kind": KIND, "response": response })
        .to_string()
        .into_bytes()
}
