//! Objects that cannot be used: what is in force of them, and what their authors are told.

use super::{Known, Ledger};
use crate::snapshot::{self, InForce, Version};
use crate::source::document::Malformed;
use crate::source::kubernetes::written::Written;
use crate::source::parse::{self, Outcome};
use crate::source::report::{Place, Problem};
use crate::status::Claim;
use crate::store::{Event, Kind, ObjectKey, ObjectRef};

/// Why an object cannot be used, and what is needed to tell and to replace it.
#[derive(Debug)]
pub(super) struct Broken {
    pub(super) problem: Malformed,
    pub(super) claim: Option<Claim>,
    pub(super) written: Option<Written>,
}

/// What a stored version turned out to be.
struct Restored {
    version: Version,
    event: Option<Event>,
}

impl Ledger {
    /// Puts in force of an object that cannot be used what it was before, as far as that is known by now.
    pub(super) fn fall_back(&mut self, key: &ObjectKey) -> Option<Event> {
        let reference = self.reference(key);
        let known = self.known.get_mut(key)?;
        let broken = known.broken.as_ref()?;
        let mut problems = vec![problem_of(&reference, &broken.problem, "")];
        let mut event = None;
        let in_force = match (&self.snapshots, &broken.written) {
            (Some(snapshots), Some(written)) => {
                let seen = known.good.as_ref().map(|it| it.generation);
                let stored = snapshots.versions(&reference, &written.uid, written.generation);
                let later = stored
                    .into_iter()
                    .take_while(|it| Some(it.generation) > seen);
                for version in later {
                    let generation = version.generation;
                    match restore(self.kind, written, version) {
                        Ok(restored) => {
                            known.good = Some(restored.version);
                            event = restored.event;
                            break;
                        }
                        Err(problem) => {
                            let which = format!(
                                "generation {generation}, which is stored, cannot be used either: "
                            );
                            problems.push(problem_of(&reference, &problem, &which));
                        }
                    }
                }
                let broken = snapshot::Broken {
                    uid: written.uid.clone(),
                    api: written.api,
                    good: known.good.clone(),
                };
                snapshots.judge(&reference, Some(broken))
            }
            // Nobody can say which version it is; what was seen counts.
            _ if known.stored => InForce::Former,
            _ => InForce::Nothing,
        };
        let in_store = known.broken.as_ref().is_some_and(|it| it.written.is_none());
        let keeps = in_store || known.good.as_ref().is_some_and(|it| it.spec.is_some());
        match &event {
            Some(_) => known.stored = true,
            None if known.stored && !keeps => {
                known.stored = false;
                event = Some(Event::Delete(reference.clone()));
            }
            None => {}
        }
        self.tell_of(key, &reference, problems, in_force);
        event
    }

    fn tell_of(
        &mut self,
        key: &ObjectKey,
        reference: &ObjectRef,
        problems: Vec<Problem>,
        in_force: InForce,
    ) {
        let Some(known) = self.known.get_mut(key) else {
            return;
        };
        let Known {
            broken: Some(broken),
            reported,
            ..
        } = known
        else {
            return;
        };
        if self.kind.is_told() {
            let claim = broken
                .claim
                .clone()
                .map(|claim| claim.but(&broken.problem.field, &broken.problem.message, in_force));
            self.claims.push((reference.clone(), claim));
        }
        *reported = true;
        let place = Place::Object(reference.clone());
        for problem in self.report.replace(&place, problems) {
            tracing::warn!(
                resource.name = %problem.object, field = %problem.field, error = %problem.message,
                "object not used; {in_force}",
            );
        }
    }
}

fn problem_of(reference: &ObjectRef, problem: &Malformed, before: &str) -> Problem {
    let message = format!("{before}{}", problem.message);
    Problem {
        field: problem.field.clone(),
        ..Problem::of(Place::Object(reference.clone()), message)
    }
}

/// Reads a stored version, as one of the object that is there.
fn restore(kind: Kind, written: &Written, version: Version) -> Result<Restored, Malformed> {
    let spec = version.spec.as_deref().unwrap_or("{}");
    let text = format!(r#"{{"metadata":{},"spec":{spec}}}"#, written.metadata);
    match parse::known(kind, &text).outcome {
        Outcome::Object(object) => Ok(Restored {
            version,
            event: Some(Event::Apply(object)),
        }),
        Outcome::Ignored | Outcome::List(_) => Ok(Restored {
            version: Version {
                spec: None,
                ..version
            },
            event: None,
        }),
        Outcome::Bad { problem, .. } => Err(problem),
    }
}
