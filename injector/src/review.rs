//! The admission review: what the API server asks about a pod, and what it is answered.
//!
//! Bytes in, bytes out, whoever serves them. A pod that can be injected is let in with a patch, one that is to stay as it is
//! without; one that would run half-injected is refused with object, field, value and remedy. What is no review of version
//! `v1` is answered with a `Status` and an HTTP error. A dry run is reviewed like any other, because a review has no effects.
//! <https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/>

mod request;
mod response;
mod verdict;

use k8s_openapi::api::core::v1::ObjectReference;
use serde_json::Value;
use tulle_runtime::names::labels;

use crate::{Decision, InjectorConfig, Namespace, SkipReason, Warning, WarningReason, inject_pod};
use request::Request;
pub(crate) use verdict::tidy;
pub use verdict::{Flaw, Refusal, Verdict};
use verdict::{Malformed, Refused};

/// Largest review that is read. A pod that can exist fits: it is in its review once, and etcd stores nothing above 1.5 MiB.
pub const MAX_REVIEW: usize = 3 << 20;

/// Answers reviews, with the settings of the injector.
#[derive(Debug, Clone)]
pub struct Reviewer {
    /// What sidecars are like, and who gets one.
    pub config: InjectorConfig,
}

/// An answer, and what there is to say of it in metrics and logs.
#[derive(Debug, Clone)]
pub struct Reviewed {
    /// Status of the HTTP response: 200 unless what came was no review.
    pub status: u16,
    /// Body of the HTTP response, JSON.
    pub response: Vec<u8>,
    /// What came of it.
    pub verdict: Verdict,
    /// The verdict in words, as its author reads it.
    pub message: String,
    /// Namespace and name of the pod, if that far was read. A name that the API server will complete ends with `*`.
    pub pod: Option<String>,
    /// Whether nothing is to come of the request.
    pub dry_run: bool,
    /// What its author is told of a pod that is let in.
    pub warnings: Vec<Warning>,
    /// The controller that made the pod, which reads no warning.
    pub(crate) owner: Option<ObjectReference>,
}

/// What a pod that is let in is answered with.
struct Admitted {
    decision: Decision,
    patch: Option<String>,
    warnings: Vec<Warning>,
}

impl Admitted {
    fn untouched(reason: SkipReason) -> Self {
        Self {
            decision: Decision::Skip(reason),
            patch: None,
            warnings: Vec::new(),
        }
    }
}

impl Reviewer {
    /// Reviews one request. `namespaces` looks up a namespace by its name; one that it does not know may be so new that it
    /// is known a moment later: a pod on which the namespace has a say is then refused so that it is tried again.
    pub fn review(
        &self,
        body: &[u8],
        namespaces: impl FnOnce(&str) -> Option<Namespace>,
    ) -> Reviewed {
        let request = match Request::parse(body) {
            Ok(request) => request,
            Err(malformed) => return malformed.answer(),
        };
        let (response, verdict, message, warnings) = match self.admit(&request, namespaces) {
            Ok(admitted) => (
                response::allowed(&request.uid, &admitted),
                Verdict::from(admitted.decision),
                admitted.decision.to_string(),
                admitted.warnings,
            ),
            Err(refused) => {
                let message = refused.message(&request);
                (
                    response::denied(&request, &refused, &message),
                    Verdict::Refused(refused.reason()),
                    message,
                    Vec::new(),
                )
            }
        };
        let owner = if warnings.is_empty() {
            None
        } else {
            request.owner()
        };
        Reviewed {
            status: 200,
            response,
            verdict,
            message,
            pod: request.is_pod().then(|| request.pod()),
            dry_run: request.dry_run,
            warnings,
            owner,
        }
    }

    fn admit(
        &self,
        request: &Request,
        namespaces: impl FnOnce(&str) -> Option<Namespace>,
    ) -> Result<Admitted, Refused> {
        if !request.is_pod() {
            let mut admitted = Admitted::untouched(SkipReason::NotAWorkload);
            let message = format!(
                "only pods are injected, and this is {}: correct the rules of the webhook's configuration",
                request.kind()
            );
            let warning = Warning::new(WarningReason::NotAPod, message);
            admitted.warnings.push(warning);
            return Ok(admitted);
        }
        if !request.sub_resource.is_empty() {
            return Ok(Admitted::untouched(SkipReason::Subresource));
        }
        if request.operation != "CREATE" {
            return Ok(Admitted::untouched(SkipReason::NotCreated));
        }
        if request.version != "v1" {
            return Err(Refused::PodVersion);
        }
        if request.namespace.is_empty() {
            return Err(Refused::NoNamespace);
        }
        let known = namespaces(&request.namespace);
        self.inject(&request.object, known, &request.namespace)
    }

    fn inject(
        &self,
        pod: &Value,
        known: Option<Namespace>,
        name: &str,
    ) -> Result<Admitted, Refused> {
        let is_known = known.is_some();
        let namespace = Namespace {
            // What the API server says, whoever looked it up.
            name: name.to_owned(),
            labels: known.unwrap_or_default().labels,
        };
        let outcome =
            inject_pod(pod, &namespace, &self.config).map_err(|error| Refused::Injection {
                field: error.field(pod),
                error,
            })?;
        if !is_known && has_a_say(pod, outcome.decision) {
            return Err(Refused::UnknownNamespace);
        }
        let patch = (!outcome.patch.0.is_empty()).then(|| outcome.patch.to_string());
        Ok(Admitted {
            decision: outcome.decision,
            patch,
            warnings: outcome.warnings,
        })
    }
}

/// Whether another decision were possible if the namespace had other labels: it names the revision of a pod that names none.
fn has_a_say(pod: &Value, decision: Decision) -> bool {
    let revision = &pod["metadata"]["labels"][labels::REVISION];
    let named = revision
        .as_str()
        .is_some_and(|revision| !revision.is_empty());
    match decision {
        Decision::Inject(_) => !named,
        Decision::Skip(SkipReason::OtherRevision) => !named,
        Decision::Skip(reason) => reason == SkipReason::NotSelected,
    }
}

impl Malformed {
    fn answer(self) -> Reviewed {
        let message = self.message();
        Reviewed {
            status: self.status(),
            response: response::failed(&self, &message),
            verdict: Verdict::Malformed(self.flaw()),
            message,
            pod: None,
            dry_run: false,
            warnings: Vec::new(),
            owner: None,
        }
    }
}

/// What a body of so many bytes is answered with, which need not be read for that.
pub(crate) fn too_large(bytes: usize) -> Reviewed {
    Malformed::TooLarge { bytes }.answer()
}

/// The `Status` by which a request fails before it is a review.
pub(crate) fn failure(code: u16, reason: &str, message: &str) -> Vec<u8> {
    response::status(code, reason, message)
}

#[cfg(test)]
mod tests;
