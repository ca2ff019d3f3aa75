//! The list of a status: our entries as they are to be, and everybody else's as they are.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::CONTROLLER;
use super::claim::{Claim, Reference};
use super::verdict::{Condition, Verdict};

/// Most entries that a status may have.
const MOST: usize = 32;

/// Now, as conditions have it.
pub(super) fn time() -> String {
    let now = json!(Time(Timestamp::now()));
    now.as_str().unwrap_or_default().to_owned()
}

/// The list with those verdicts; `None` if it is like that already.
pub(super) fn parents(claim: &Claim, verdicts: &[Verdict], now: &str) -> Option<Vec<Value>> {
    let mut left: Vec<_> = verdicts.iter().collect();
    let mut list = Vec::new();
    for entry in &claim.told {
        if entry["controllerName"] != CONTROLLER {
            list.push(entry.clone());
            continue;
        }
        let parent = Reference::told(entry);
        // One whose parent is not the route's any more goes.
        if let Some(index) = left.iter().position(|it| it.parent == parent) {
            list.push(entry_of(left.remove(index), claim, Some(entry), now));
        }
    }
    let new = left.into_iter().map(|it| entry_of(it, claim, None, now));
    list.extend(new);
    list.truncate(MOST);
    (list != claim.told).then_some(list)
}

fn entry_of(verdict: &Verdict, claim: &Claim, before: Option<&Value>, now: &str) -> Value {
    let known = before.and_then(|it| it["conditions"].as_array());
    let known = known.map_or(&[][..], Vec::as_slice);
    let conditions = conditions(&verdict.conditions, known, claim, now);
    let parent = before.map_or_else(|| verdict.parent.to_json(), |it| it["parentRef"].clone());
    json!({
        "parentRef": parent,
        "controllerName": CONTROLLER,
        "conditions": conditions,
    })
}

/// Our conditions, and those that somebody else has added to them.
pub(super) fn conditions(
    ours: &[Condition],
    known: &[Value],
    claim: &Claim,
    now: &str,
) -> Vec<Value> {
    let ours = ours.iter().map(|condition| {
        let before = known.iter().find(|it| it["type"] == condition.name);
        json_of(condition, claim, before, now)
    });
    let mut conditions: Vec<_> = ours.collect();
    // Whoever has added another one has a reason.
    let foreign = |it: &&Value| conditions.iter().all(|our| our["type"] != it["type"]);
    let foreign: Vec<_> = known.iter().filter(foreign).cloned().collect();
    conditions.extend(foreign);
    conditions
}

/// A condition; its time is when its status became another.
fn json_of(condition: &Condition, claim: &Claim, before: Option<&Value>, now: &str) -> Value {
    let status = if condition.holds { "True" } else { "False" };
    let since = before
        .filter(|it| it["status"] == status)
        .and_then(|it| it["lastTransitionTime"].as_str());
    json!({
        "type": condition.name,
        "status": status,
        "reason": condition.reason,
        "message": condition.message,
        "observedGeneration": claim.generation,
        "lastTransitionTime": since.unwrap_or(now),
    })
}
