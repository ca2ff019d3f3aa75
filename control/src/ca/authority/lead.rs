//! What the replicas do with a state that they share: all follow it, and the elected one takes the steps of a rotation.

use std::time::{Duration, SystemTime};

use super::trial::{goes_back, has_ended, is_spent, provided};
use super::{
    Authority, CaError, LOOK, RETRY, ROOT_RENEWAL, Roots, Stage, State, longest_leaf, new_root,
    ready,
};

impl Authority {
    /// Notes which term it is. In a new one, what others wrote before counts, and what was published by them may not have been.
    pub(super) fn begin_term(&self, term: Option<u64>) {
        let mut state = self.state.lock();
        if state.term != term {
            state.term = term;
            state.published = false;
            self.settings.memory.hint();
        }
    }

    /// Works with what others have written, if they have.
    pub(super) async fn follow(&self) -> Result<(), CaError> {
        let memory = &self.settings.memory;
        if !memory.is_due() {
            return Ok(());
        }
        let loaded = match memory.load().await {
            Err(error) if !error.is_passing() => return Err(self.spoilt(error)),
            loaded => loaded?,
        };
        let Some(mut roots) = loaded else {
            return self.restore().await;
        };
        let longer = roots.note_leaf_ttl(longest_leaf(&self.settings));
        if !longer && roots == self.state.lock().roots {
            self.metrics.state_broken.set(0);
            return Ok(());
        }
        let ready = match ready(roots, &self.settings, &self.id) {
            Ok(ready) => ready,
            Err(error) => return Err(self.spoilt(error)),
        };
        self.metrics.state_broken.set(0);
        let (known, stage) = {
            let state = self.state.lock();
            let signer = &ready.roots.signer().certificate;
            let known = state.roots.signer().certificate == *signer
                || state
                    .roots
                    .others()
                    .any(|other| other.certificate == *signer);
            (known, ready.roots.stage())
        };
        if !known {
            tracing::warn!(
                place = memory.place(),
                "the CA's state has a root that was not announced here before it signs: workloads that have not heard of it refuse it until they do"
            );
        }
        if longer {
            memory.save(&ready.roots).await?;
        }
        self.put(ready)?;
        tracing::info!(
            place = memory.place(),
            ?stage,
            "the CA's state was changed by another, and is followed"
        );
        Ok(())
    }

    /// A state that is no good is not worked with: the last good one stays in use, and no step is taken.
    fn spoilt(&self, error: CaError) -> CaError {
        self.metrics.state_broken.set(1);
        self.settings.memory.hint();
        error
    }

    /// The state was deleted; what is known of it is put back by the elected replica.
    async fn restore(&self) -> Result<(), CaError> {
        let place = self.settings.memory.place();
        if self.settings.leadership.term().is_none() {
            tracing::warn!(
                place,
                "the CA's state was deleted; the elected replica puts it back"
            );
            return Ok(());
        }
        let roots = self.state.lock().roots.clone();
        self.settings.memory.save(&roots).await?;
        tracing::warn!(
            place,
            "the CA's state was deleted; it was put back from memory"
        );
        Ok(())
    }

    /// Takes the steps that are due, and says how long until another is.
    ///
    /// Another key below the same root, and the announcement of another root, wait for nothing: who has not got the bundle
    /// loses nothing by them. What waits is that a new root signs, and that an old one goes: until the bundle has arrived with
    /// all that a sink waits for.
    pub(super) async fn lead(&self) -> Result<Duration, CaError> {
        let now = (self.settings.now)();
        self.look_at_plugged().await?;
        if let Some(roots) = self.replaced()? {
            let stage = roots.stage();
            self.adopt(roots).await?;
            tracing::info!(
                ?stage,
                "what signs has changed, or what is announced to sign"
            );
            return Ok(Duration::ZERO);
        }
        if !self.state.lock().published && !self.publish().await? {
            return Ok(RETRY);
        }
        let mut roots = self.state.lock().roots.clone();
        if roots.advance(now, self.settings.propagation, longest_leaf(&self.settings)) {
            let stage = roots.stage();
            self.adopt(roots).await?;
            tracing::info!(?stage, "root rotation: next stage");
            return Ok(Duration::ZERO);
        }
        let due = roots.due(self.settings.propagation);
        Ok(due.map_or(LOOK, |due| due.duration_since(now).unwrap_or_default()))
    }

    /// Hands the bundle to every sink; says whether it has arrived.
    async fn publish(&self) -> Result<bool, CaError> {
        let bundle = self.state.lock().roots.bundle();
        for sink in &self.settings.sinks {
            if let Err(error) = sink.publish(&bundle).await {
                self.metrics.bundle_failures.inc();
                if let Some(left_out) = self.told.pass() {
                    tracing::error!(%error, left_out, "the trust bundle cannot be written; will be tried again");
                }
                return Ok(false);
            }
        }
        let mut roots = self.state.lock().roots.clone();
        // The time that it takes to reach everybody begins only now.
        if roots.announced((self.settings.now)()) {
            self.settings.memory.save(&roots).await?;
        }
        let mut state = self.state.lock();
        state.roots = roots;
        state.published = true;
        Ok(true)
    }

    /// The roots with a new one announced, or another key below the same one, if it is time for that.
    fn replaced(&self) -> Result<Option<Roots>, CaError> {
        let now = (self.settings.now)();
        let state = self.state.lock();
        let mut roots = state.roots.clone();
        if self.is_unwanted(&state, now)? {
            roots.withdraw();
            return Ok(Some(roots));
        }
        let plugged = state.plugged.as_ref();
        if plugged.is_some_and(|plugged| roots.renew(plugged)) {
            return Ok(Some(roots));
        }
        let ended = self.ends() <= now;
        if ended && goes_back(&mut roots, &self.settings, &self.id, now)? {
            return Ok(Some(roots));
        }
        let new = match (&self.settings.plugged, plugged) {
            (Some(_), None) => return Ok(None),
            (Some(_), Some(plugged)) if plugged == roots.signer() => return Ok(None),
            (Some(_), Some(plugged)) => plugged.clone(),
            // Whoever does not name it any more wants its key out of use.
            (None, _) if roots.stage() == Stage::Steady || ended => {
                if !roots.signer().provided && !self.is_old(now) {
                    return Ok(None);
                }
                new_root(&self.settings.trust_domain)?
            }
            (None, _) => return Ok(None),
        };
        if ended {
            roots.take_over(new, now);
            return Ok(Some(roots));
        }
        Ok(roots.begin(new, now).is_ok().then_some(roots))
    }

    /// Whether what is announced is not to sign: nobody would believe it, or somebody has put another one in its place.
    fn is_unwanted(&self, state: &State, now: SystemTime) -> Result<bool, CaError> {
        let Some(next) = state.roots.next() else {
            return Ok(false);
        };
        if is_spent(next, &self.settings, &self.id, now)? {
            return Ok(true);
        }
        Ok(match (&self.settings.plugged, &state.plugged) {
            (Some(_), None) => false,
            (Some(_), Some(plugged)) => plugged.certificate != next.certificate,
            (None, _) => next.provided,
        })
    }

    /// Whether the root that signs has not long to live.
    fn is_old(&self, now: SystemTime) -> bool {
        self.ends() < now + ROOT_RENEWAL
    }

    /// When the root that signs ends, or what is below it and signs.
    fn ends(&self) -> SystemTime {
        self.issuer.load().root().not_after()
    }

    /// Sees what somebody else provides now. What is no good is told, and the last good one stays until it ends.
    async fn look_at_plugged(&self) -> Result<(), CaError> {
        let Some(plugged) = &self.settings.plugged else {
            return Ok(());
        };
        if !self.forget_ended()? && !plugged.is_due() {
            return Ok(());
        }
        match provided(plugged, &self.settings, &self.id).await {
            Ok(root) => {
                self.metrics.plugged_broken.set(0);
                self.state.lock().plugged = Some(root);
            }
            Err(error) => {
                self.metrics.plugged_broken.set(1);
                if let Some(left_out) = self.told.pass() {
                    let error = error.full();
                    tracing::error!(
                        error,
                        left_out,
                        "the provided root cannot be used; the last good one stays in use"
                    );
                }
            }
        }
        Ok(())
    }

    /// Forgets what somebody else provides if it has ended since it was seen; says whether it has.
    fn forget_ended(&self) -> Result<bool, CaError> {
        let now = (self.settings.now)();
        let mut state = self.state.lock();
        let ended = match &state.plugged {
            Some(plugged) => has_ended(plugged, &self.settings, now)?,
            None => false,
        };
        if ended {
            state.plugged = None;
        }
        Ok(ended)
    }
}
