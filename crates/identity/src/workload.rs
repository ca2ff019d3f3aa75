//! Who this pod is, as its environment says it: what a sidecar or an agent asks the CA for.

use tulle_runtime::env::Env;
use tulle_runtime::names::{DEFAULT_TRUST_DOMAIN, variables};

use crate::spiffe::{SpiffeId, TrustDomain};

/// The id of the pod's service account. `None` means that [`Env::finish`] will say what is wrong.
#[must_use]
pub fn workload_id(env: &Env) -> Option<SpiffeId> {
    let domain = env
        .get(variables::TRUST_DOMAIN)
        .unwrap_or_else(|| DEFAULT_TRUST_DOMAIN.to_owned());
    let domain = TrustDomain::new(&domain)
        .inspect_err(|error| env.reject(variables::TRUST_DOMAIN, error))
        .ok();
    let namespace = env.required::<String>(variables::POD_NAMESPACE);
    let account = env.required::<String>(variables::SERVICE_ACCOUNT);
    let (domain, namespace) = (domain?, namespace?);
    // With an account that is good for certain, what is wrong is the namespace.
    SpiffeId::new(&domain, &namespace, "default")
        .inspect_err(|error| env.reject(variables::POD_NAMESPACE, error))
        .ok()?;
    SpiffeId::new(&domain, &namespace, &account?)
        .inspect_err(|error| env.reject(variables::SERVICE_ACCOUNT, error))
        .ok()
}
