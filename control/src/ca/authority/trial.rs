//! Whether a root is of use: one that somebody else provides, before anything is made of it, and those of the state, whoever
//! has put them there.
//!
//! Peers look at the whole path of a certificate. What is above it may be kept to other uses or names than a mesh's, which
//! shows in nothing but a certificate that they refuse; so one is made for the trial.

use std::time::SystemTime;

use tulle_identity::{Error, Root, SpiffeId, VerifyError};

use super::{CaError, Plugged, RootPem, Roots, Settings, issuer, own_svid};

/// What somebody else provides now, unless peers would refuse what it signs.
pub(super) async fn provided(
    plugged: &Plugged,
    settings: &Settings,
    id: &SpiffeId,
) -> Result<RootPem, CaError> {
    let root = plugged.root((settings.now)()).await?;
    match try_out(&root, settings, id) {
        Ok(()) => Ok(root),
        Err(error) => Err(plugged.bad(error.full())),
    }
}

/// Whether nobody believes what it signs: it has ended, or peers refuse that for another reason than the time.
pub(super) fn is_spent(
    pem: &RootPem,
    settings: &Settings,
    id: &SpiffeId,
    now: SystemTime,
) -> Result<bool, CaError> {
    if has_ended(pem, settings, now)? {
        return Ok(true);
    }
    Ok(match try_out(pem, settings, id) {
        // It will be, or our clock is wrong.
        Err(CaError::Refused(Error::Chain(VerifyError::NotValidYet { .. }))) => false,
        tried => matches!(tried, Err(CaError::Refused(_))),
    })
}

/// Has the root of before sign again, now that the present one is spent; says whether it can. All believe it while its leaves
/// live, which is until the rotation would have ended: so nobody is cut off, and a third root can be announced like any other.
pub(super) fn goes_back(
    roots: &mut Roots,
    settings: &Settings,
    id: &SpiffeId,
    now: SystemTime,
) -> Result<bool, CaError> {
    let can = match roots.former() {
        Some(former) => !is_spent(former, settings, id, now)?,
        None => false,
    };
    if can {
        roots.go_back();
    }
    Ok(can)
}

/// Signs for us with a root, and looks at that as peers would.
fn try_out(pem: &RootPem, settings: &Settings, id: &SpiffeId) -> Result<(), CaError> {
    let roots = Roots::new(pem.clone());
    let issuer = issuer(&roots, settings.leaf_ttl, &settings.trust_domain)?;
    own_svid(&issuer, id, settings).map(drop)
}

/// Whether nothing can be signed with it any more.
pub(super) fn has_ended(
    pem: &RootPem,
    settings: &Settings,
    now: SystemTime,
) -> Result<bool, CaError> {
    let broken = |error: Error| CaError::Broken {
        place: settings.memory.place(),
        reason: error.full(),
    };
    let root = Root::from_pem_for(&pem.secret, &settings.trust_domain).map_err(broken)?;
    Ok(root.not_after() <= now)
}
