//! Whether what was applied comes about: rollouts are followed to their end, or until they get on no more.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use kube::Client;
use kube::api::Api;
use tokio::time::{Instant, sleep};
use tulle_runtime::names::{CONTROL_NAMESPACE, labels};

use crate::cluster::answer;
use crate::cluster::rollouts::{self, Stage};
use crate::output;
use crate::progress::Progress;

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// Follows Deployments of the mesh, and says of which the rollout stood still for so long; whether all are over.
pub(super) async fn follow(client: &Client, mut names: Vec<String>, patience: Duration) -> bool {
    let api: Api<Deployment> = Api::namespaced(client.clone(), CONTROL_NAMESPACE);
    let mut progress = Progress::new();
    let mut farthest = BTreeMap::new();
    let mut states = BTreeMap::new();
    let mut moved = Instant::now();
    loop {
        let mut left = Vec::new();
        for name in names {
            let what = format!("see how far Deployment {CONTROL_NAMESPACE}/{name} is");
            let stage = answer(&what, api.get(&name))
                .await
                .map(|it| rollouts::stage(&it));
            match stage {
                Ok(Stage::Over) => {
                    progress.clear();
                    output::note(&format!(
                        "Deployment {CONTROL_NAMESPACE}/{name} is rolled out"
                    ));
                    moved = Instant::now();
                    continue;
                }
                Ok(Stage::Under { state, far, .. }) => {
                    if farthest.get(&name).is_none_or(|before| far > *before) {
                        farthest.insert(name.clone(), far);
                        moved = Instant::now();
                    }
                    states.insert(name.clone(), state);
                }
                // The API server may be away for a moment, as anybody.
                Err(error) => {
                    states.insert(name.clone(), error.to_string());
                }
            }
            left.push(name);
        }
        if left.is_empty() {
            return true;
        }
        if moved.elapsed() >= patience {
            progress.clear();
            for name in &left {
                let state = states.get(name).map_or("", String::as_str);
                let why = why(client, &api, name).await;
                stuck(name, state, &why, patience);
            }
            return false;
        }
        let state = |name: &String| format!("{name}: {}", states.get(name).map_or("", |it| it));
        progress.says(&left.iter().map(state).collect::<Vec<_>>().join("; "));
        sleep(PAUSE).await;
        names = left;
    }
}

fn stuck(name: &str, state: &str, why: &str, patience: Duration) {
    output::warning(&format!(
        "the rollout of Deployment {CONTROL_NAMESPACE}/{name} has not got on for {} s: {state}{why}; see the rest: kubectl -n \
         {CONTROL_NAMESPACE} describe pods -l {}={name}",
        patience.as_secs(),
        labels::APP_NAME
    ));
}

/// What is known of why it does not get on, as the end of a sentence.
async fn why(client: &Client, api: &Api<Deployment>, name: &str) -> String {
    let why = async {
        let deployment = answer("see why", api.get(name)).await?;
        rollouts::why(client, &deployment).await
    };
    let why = why.await.ok().flatten();
    why.map_or_else(String::new, |why| format!("; {why}"))
}
