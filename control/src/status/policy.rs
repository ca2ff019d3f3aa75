//! What a PeerAuthentication is told: whether it counts, and whether what it names is there.
//!
//! `Accepted` is false if it cannot be used (`Invalid`) or if another one of the same scope comes first wherever it would
//! (`Conflicted`); where that is so for a part of its pods only, it is true and says it. `ResolvedRefs` is false if a Service that it
//! names is not there (`TargetNotFound`), or if nothing is known of a port (`PortNotFound`). Messages name no pods and no
//! numbers of them, so that they do not change whenever pods do.

use std::collections::{BTreeMap, BTreeSet};

use super::claim::Claim;
use super::parents;
use super::verdict::{ACCEPTED, Condition, RESOLVED};
use crate::store::policy::PolicyTarget;
use crate::store::{Kind, ObjectKey, ObjectRef, PeerAuthentication, Pod, World};
use crate::translate;

/// What verdicts on policies depend on.
pub(super) const KINDS: [Kind; 4] = [
    Kind::Service,
    Kind::Pod,
    Kind::PeerAuthentication,
    Kind::IstioPeerAuthentication,
];

/// Judges the policies of a world.
pub(super) struct Judge<'a> {
    world: &'a World,
    /// By which others each is overruled, and for which pods.
    overruled: BTreeMap<ObjectRef, Vec<translate::Overruled>>,
}

impl<'a> Judge<'a> {
    pub(super) fn new(world: &'a World) -> Self {
        let mut overruled: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for it in translate::overruled(world) {
            overruled.entry(it.policy.clone()).or_default().push(it);
        }
        Self { world, overruled }
    }

    /// The conditions that a policy is to have; `None` if it has them, or if nobody can tell yet.
    pub(super) fn conditions(
        &self,
        reference: &ObjectRef,
        claim: &Claim,
        now: &str,
    ) -> Option<Vec<serde_json::Value>> {
        let conditions = match &claim.problem {
            Some((problem, in_force)) => [
                Condition::no(ACCEPTED, "Invalid", format!("{problem}; {in_force}")),
                Condition::yes(RESOLVED, "not looked at".to_owned()),
            ],
            None => {
                let policy = self.policy(&reference.key)?;
                let pods: Vec<_> = translate::subjects(self.world, policy).collect();
                [
                    self.acceptance(reference, policy, &pods),
                    self.resolution(policy, &pods),
                ]
            }
        };
        let list = parents::conditions(&conditions, &claim.told, claim, now);
        (list != claim.told).then_some(list)
    }

    fn policy(&self, key: &ObjectKey) -> Option<&'a PeerAuthentication> {
        let mut policies = self.world.policies_in(&key.namespace);
        let found = policies.find(|it| !it.istio && it.key == *key);
        found.map(|policy| &**policy)
    }

    fn acceptance(
        &self,
        reference: &ObjectRef,
        policy: &PeerAuthentication,
        pods: &[&Pod],
    ) -> Condition {
        let ahead = self.overruled.get(reference).map_or(&[][..], Vec::as_slice);
        let Some(first) = ahead.first() else {
            let message = match (policy.target == PolicyTarget::Namespace, pods.is_empty()) {
                (false, true) => "in force, and there is no pod that it applies to",
                _ => "in force",
            };
            return Condition::yes(ACCEPTED, message.to_owned());
        };
        let by: BTreeSet<_> = ahead.iter().map(|it| it.by.to_string()).collect();
        let by = by.into_iter().collect::<Vec<_>>().join(", ");
        let why = "an older one comes first, and of two of the same age the first by name";
        if first.pods.is_empty() {
            let message = format!(
                "{by} is for the whole namespace, too, and counts instead ({why}): remove one of the two"
            );
            return Condition::no(ACCEPTED, "Conflicted", message);
        }
        let lost: BTreeSet<_> = ahead.iter().flat_map(|it| &it.pods).collect();
        if pods.iter().all(|pod| lost.contains(&pod.key)) {
            let message = format!(
                "{by} is for all of its pods, too, and counts instead ({why}): narrow or remove one"
            );
            return Condition::no(ACCEPTED, "Conflicted", message);
        }
        Condition::yes(
            ACCEPTED,
            format!("in force, but for pods that {by} is for, too ({why}): narrow one of them"),
        )
    }

    fn resolution(&self, policy: &PeerAuthentication, pods: &[&Pod]) -> Condition {
        if let PolicyTarget::Services(services) = &policy.target {
            let missing = services
                .iter()
                .find(|key| self.world.service(key).is_none());
            if let Some(key) = missing {
                let message = format!(
                    "Service {key} does not exist, and the policy applies to none of its pods"
                );
                return Condition::no(RESOLVED, "TargetNotFound", message);
            }
        }
        let mut ports = policy.ports.keys();
        let unknown = ports.find(|port| !pods.is_empty() && !self.is_known(**port, pods));
        match unknown {
            Some(port) => {
                let message = format!(
                    "portLevelMtls.{port}: no Service leads to port {port} of its pods, and no container port with a name is it; ports \
                     are those of containers, not of Services, and it counts if something listens there"
                );
                Condition::no(RESOLVED, "PortNotFound", message)
            }
            None => Condition::yes(RESOLVED, "everything that it names is there".to_owned()),
        }
    }

    fn is_known(&self, port: u16, pods: &[&Pod]) -> bool {
        pods.iter().any(|pod| {
            pod.named_ports.iter().any(|(_, known)| *known == port)
                || translate::is_targeted(self.world, pod, port)
        })
    }
}
