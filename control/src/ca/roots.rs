//! The mesh's root certificates and how one replaces another: a state machine without clock or disk.
//!
//! A rotation overlaps. The new root is first *announced* in the trust bundle while the old one still signs; once the
//! bundle had time to reach everybody, signing is *switched*; once the last leaf of the old root has expired, the old
//! root goes. At no moment does anybody meet a certificate whose root he was not told about. Where the new root ends before
//! that, the old one, which everybody still believes, signs again.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tulle_identity::Root;

/// Added to the life of the old root's last leaf, for clocks that differ.
const SKEW: Duration = Duration::from_secs(5);

/// A root, PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RootPem {
    /// Its certificate.
    pub(crate) certificate: String,
    /// Its private key and certificate: a secret.
    pub(crate) secret: String,
    /// Whether it is somebody else's, who provides it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) provided: bool,
}

impl RootPem {
    /// A root of our own, with its key.
    pub(crate) fn of(root: &Root) -> Self {
        Self {
            certificate: root.cert_pem(),
            secret: root.to_pem().to_string(),
            provided: false,
        }
    }

    /// A root that somebody else provides.
    pub(crate) fn provided(root: &Root) -> Self {
        Self {
            provided: true,
            ..Self::of(root)
        }
    }
}

impl fmt::Debug for RootPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RootPem").finish_non_exhaustive()
    }
}

/// All that the CA has to remember.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Roots {
    /// One root, or during a rotation two, the older first.
    roots: Vec<RootPem>,
    stage: Stage,
    /// The longest life, in seconds, that the present signer ever gave a leaf.
    longest_leaf: u64,
}

/// How far a rotation has come. Times are seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stage {
    /// One root.
    Steady,
    /// Two roots in the bundle; the older signs.
    Announced {
        /// Since when.
        since: u64,
    },
    /// Two roots in the bundle; the newer signs.
    Switched {
        /// Since when.
        since: u64,
        /// The longest life, in seconds, of a leaf of the older root.
        longest_leaf: u64,
    },
}

/// A rotation cannot begin while another is under way.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a root rotation is already under way; see GET /ca for its stage, and try again when it is steady"
)]
pub(crate) struct RotationUnderWay;

impl Roots {
    /// A mesh's first root.
    pub(crate) fn new(root: RootPem) -> Self {
        Self {
            roots: vec![root],
            stage: Stage::Steady,
            longest_leaf: 0,
        }
    }

    /// What a file says, if it makes sense.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        let roots: Self = serde_json::from_str(text).map_err(|problem| problem.to_string())?;
        if !roots.is_sound() {
            return Err("the number of roots does not fit the stage of the rotation".to_owned());
        }
        Ok(roots)
    }

    fn is_sound(&self) -> bool {
        self.roots.len() == if self.stage == Stage::Steady { 1 } else { 2 }
    }

    /// How far a rotation has come.
    pub(crate) fn stage(&self) -> Stage {
        self.stage
    }

    /// The root that signs now.
    pub(crate) fn signer(&self) -> &RootPem {
        &self.roots[self.signer_index()]
    }

    /// The root that has signed before and is trusted for a while yet.
    pub(crate) fn former(&self) -> Option<&RootPem> {
        matches!(self.stage, Stage::Switched { .. }).then(|| &self.roots[0])
    }

    /// The roots that are trusted but do not sign.
    pub(crate) fn others(&self) -> impl Iterator<Item = &RootPem> {
        let signer = self.signer_index();
        self.roots
            .iter()
            .enumerate()
            .filter(move |(index, _)| *index != signer)
            .map(|(_, root)| root)
    }

    /// The trust bundle: every root to believe, PEM.
    pub(crate) fn bundle(&self) -> String {
        let mut bundle = String::new();
        for root in &self.roots {
            bundle.push_str(root.certificate.trim_end());
            bundle.push('\n');
        }
        bundle
    }

    /// Notes that leaves may live this long from now on; returns whether that is news.
    pub(crate) fn note_leaf_ttl(&mut self, ttl: Duration) -> bool {
        let longer = ttl.as_secs() > self.longest_leaf;
        self.longest_leaf = self.longest_leaf.max(ttl.as_secs());
        longer
    }

    /// Signs with another key below the same root from now on, which nobody has to be told, or knows that somebody provides it;
    /// says whether that is news.
    pub(crate) fn renew(&mut self, root: &RootPem) -> bool {
        let index = self.signer_index();
        let signer = &mut self.roots[index];
        let news = signer.certificate == root.certificate && signer != root;
        if news {
            *signer = root.clone();
        }
        news
    }

    /// Announces a new root.
    pub(crate) fn begin(&mut self, root: RootPem, now: SystemTime) -> Result<(), RotationUnderWay> {
        if self.stage != Stage::Steady {
            return Err(RotationUnderWay);
        }
        self.roots.push(root);
        self.stage = Stage::Announced {
            since: seconds(now),
        };
        Ok(())
    }

    /// The root that is announced and has not signed yet.
    pub(crate) fn next(&self) -> Option<&RootPem> {
        matches!(self.stage, Stage::Announced { .. }).then(|| &self.roots[1])
    }

    /// Takes back what is announced and has not signed yet: nobody has anything of it.
    pub(crate) fn withdraw(&mut self) {
        if self.next().is_some() {
            self.roots.truncate(1);
            self.stage = Stage::Steady;
        }
    }

    /// Signs by the root of before again, which everybody still believes: what the present one has signed, nobody does.
    pub(crate) fn go_back(&mut self) {
        if let Stage::Switched { longest_leaf, .. } = self.stage {
            self.roots.truncate(1);
            self.stage = Stage::Steady;
            self.longest_leaf = self.longest_leaf.max(longest_leaf);
        }
    }

    /// Signs with another root at once: the present one has expired, so there is nobody left who needs time to hear of it.
    pub(crate) fn take_over(&mut self, root: RootPem, now: SystemTime) {
        let signer = self.signer().clone();
        self.roots = vec![signer, root];
        self.stage = Stage::Switched {
            since: seconds(now),
            longest_leaf: 0,
        };
    }

    /// The bundle with the announced root has only now left; returns whether that matters.
    pub(crate) fn announced(&mut self, now: SystemTime) -> bool {
        match &mut self.stage {
            Stage::Announced { since } if *since < seconds(now) => {
                *since = seconds(now);
                true
            }
            _ => false,
        }
    }

    /// When the rotation's next step is due; `propagation` is how long a bundle takes to reach everybody.
    pub(crate) fn due(&self, propagation: Duration) -> Option<SystemTime> {
        let (since, wait) = match self.stage {
            Stage::Steady => return None,
            Stage::Announced { since } => (since, propagation),
            Stage::Switched {
                since,
                longest_leaf,
            } => (
                since,
                Duration::from_secs(longest_leaf).saturating_add(SKEW),
            ),
        };
        UNIX_EPOCH
            .checked_add(Duration::from_secs(since))?
            .checked_add(wait)
    }

    /// Takes the next step if it is due, and says whether it did. `leaf_ttl` is how long leaves live now.
    pub(crate) fn advance(
        &mut self,
        now: SystemTime,
        propagation: Duration,
        leaf_ttl: Duration,
    ) -> bool {
        if self.due(propagation).is_none_or(|due| now < due) {
            return false;
        }
        match self.stage {
            Stage::Steady => return false,
            Stage::Announced { .. } => {
                self.stage = Stage::Switched {
                    since: seconds(now),
                    longest_leaf: self.longest_leaf,
                };
                self.longest_leaf = leaf_ttl.as_secs();
            }
            Stage::Switched { .. } => {
                self.roots.remove(0);
                self.stage = Stage::Steady;
            }
        }
        true
    }

    fn signer_index(&self) -> usize {
        usize::from(matches!(self.stage, Stage::Switched { .. }))
    }
}

/// Seconds since 1970, rounded up so that no wait is cut short.
fn seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs() + u64::from(since.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROPAGATION: Duration = Duration::from_secs(120);
    const LEAF: Duration = Duration::from_secs(3600);

    fn root(name: &str) -> RootPem {
        RootPem {
            certificate: format!("{name}\n"),
            secret: "key".to_owned(),
            provided: false,
        }
    }

    fn at(second: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(second)
    }

    #[test]
    fn a_new_root_is_announced_then_signs_then_stands_alone() {
        let mut roots = Roots::new(root("old"));
        roots.note_leaf_ttl(LEAF);
        assert_eq!(roots.due(PROPAGATION), None);
        roots.begin(root("new"), at(1000)).expect("steady");
        let see = |roots: &Roots| (roots.signer().certificate.trim().to_owned(), roots.bundle());
        let both = "old\nnew\n".to_owned();
        let table = [
            ("announced", 1119, false, "old", both.clone()),
            ("switched", 1120, true, "new", both.clone()),
            ("the old leaves still live", 1120 + 3604, false, "new", both),
            ("alone", 1120 + 3605, true, "new", "new\n".to_owned()),
            ("steady", 99_999, false, "new", "new\n".to_owned()),
        ];
        for (name, second, moved, signer, bundle) in table {
            assert_eq!(
                roots.advance(at(second), PROPAGATION, LEAF),
                moved,
                "{name}"
            );
            assert_eq!(see(&roots), (signer.to_owned(), bundle), "{name}");
            assert!(roots.is_sound(), "{name}");
        }
    }

    #[test]
    fn the_old_root_stays_for_the_longest_leaf_it_ever_signed() {
        let mut roots = Roots::new(root("old"));
        roots.note_leaf_ttl(LEAF);
        assert!(
            !roots.note_leaf_ttl(Duration::from_secs(10)),
            "shorter is no news"
        );
        roots.begin(root("new"), at(0)).expect("steady");
        roots.advance(at(120), PROPAGATION, Duration::from_secs(10));
        assert_eq!(roots.due(PROPAGATION), Some(at(120 + 3605)));
    }

    #[test]
    fn whoever_signs_again_stays_for_the_longest_leaf_of_both_times() {
        for (first, second) in [
            (LEAF, Duration::from_secs(10)),
            (Duration::from_secs(10), LEAF),
        ] {
            let mut roots = Roots::new(root("old"));
            roots.note_leaf_ttl(first);
            roots.begin(root("short"), at(0)).expect("steady");
            roots.go_back();
            assert!(roots.next().is_some(), "nothing else has signed");
            roots.advance(at(120), PROPAGATION, second);
            roots.go_back();
            assert_eq!(
                (roots.stage(), roots.bundle().as_str()),
                (Stage::Steady, "old\n")
            );
            roots.begin(root("new"), at(200)).expect("steady again");
            roots.advance(at(320), PROPAGATION, LEAF);
            assert_eq!(roots.due(PROPAGATION), Some(at(320 + 3605)));
        }
    }

    #[test]
    fn a_leaf_that_lives_for_ever_keeps_the_old_root_for_ever() {
        let text = r#"{"roots": [{"certificate": "old", "secret": ""}, {"certificate": "new", "secret": ""}],
            "stage": {"switched": {"since": 1, "longest_leaf": 18446744073709551615}}, "longest_leaf": 0}"#;
        let mut roots = Roots::read(text).expect("two roots amid a rotation");
        assert_eq!(roots.due(PROPAGATION), None);
        assert!(!roots.advance(at(u64::from(u32::MAX)), PROPAGATION, LEAF));
    }

    #[test]
    fn one_rotation_at_a_time() {
        let mut roots = Roots::new(root("old"));
        roots.begin(root("new"), at(0)).expect("steady");
        assert_eq!(roots.begin(root("newer"), at(1)), Err(RotationUnderWay));
        roots.advance(at(120), PROPAGATION, LEAF);
        assert_eq!(roots.begin(root("newer"), at(121)), Err(RotationUnderWay));
    }

    #[test]
    fn the_state_survives_a_restart_at_every_stage() {
        let mut roots = Roots::new(root("old"));
        for second in [0, 120, 9999] {
            let text = serde_json::to_string(&roots).expect("plain data");
            assert_eq!(
                serde_json::from_str::<Roots>(&text).expect("written above"),
                roots
            );
            if roots.begin(root("new"), at(second)).is_err() {
                roots.advance(at(second), PROPAGATION, LEAF);
            }
        }
    }

    #[test]
    fn keys_stay_out_of_debug_output() {
        assert!(!format!("{:?}", Roots::new(root("old"))).contains("key\""));
    }
}
