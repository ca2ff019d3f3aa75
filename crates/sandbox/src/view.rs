//! What the sandbox shows of itself: pods, their containers, and events for whoever draws progress.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::ObjectKey;
use crate::network::PodIps;

/// A pod at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodView {
    /// Its namespace and name.
    pub key: ObjectKey,
    /// Its addresses.
    pub ips: PodIps,
    /// `Pending`, `Running`, `Succeeded` or `Failed`.
    pub phase: String,
    /// Whether it gets traffic.
    pub ready: bool,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// What it waits for before its containers can start.
    pub waiting: Option<String>,
    /// Its containers, init containers first.
    pub containers: Vec<ContainerView>,
}

impl PodView {
    /// The container of that name.
    #[must_use]
    pub fn container(&self, name: &str) -> Option<&ContainerView> {
        self.containers
            .iter()
            .find(|container| container.name == name)
    }

    /// One line about what keeps it from being ready.
    #[must_use]
    pub fn blocker(&self) -> Option<String> {
        if self.ready || self.phase == "Succeeded" {
            return None;
        }
        let held = self.waiting.clone();
        let open = |container: &&ContainerView| {
            !(container.ready || container.init && container.exit_code == Some(0))
        };
        let reason = held.or_else(|| {
            let container = self.containers.iter().find(open)?;
            let message = container
                .message
                .as_ref()
                .map(|message| format!(" ({message})"))
                .unwrap_or_default();
            let state = if container.state == "Running" {
                "Running, not ready"
            } else {
                &container.state
            };
            Some(format!("container {}: {state}{message}", container.name))
        });
        Some(format!(
            "pod {}: {}",
            self.key,
            reason.unwrap_or_else(|| self.phase.clone())
        ))
    }
}

/// A container at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerView {
    /// Its name.
    pub name: String,
    /// Whether it runs to its end before the others start.
    pub init: bool,
    /// `Running`, or why it waits or ended, in Kubernetes' words.
    pub state: String,
    /// More about the state.
    pub message: Option<String>,
    /// Whether it is ready.
    pub ready: bool,
    /// How often it was started again.
    pub restarts: u32,
    /// Its first process, if it runs.
    pub pid: Option<u32>,
    /// How it ended last.
    pub exit_code: Option<i32>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// `pod shop/web-1`, or a file.
    pub subject: String,
    /// What happened.
    pub what: What,
    /// More about it; may be empty.
    pub detail: String,
    /// The same in parts, if it is about a manifest that the control plane read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

/// What the control plane cannot use of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// Line in the file, from 1; 0 if it is about the whole file.
    pub line: u64,
    /// `Kind namespace/name`, as far as it could be read.
    pub object: String,
    /// The field; empty if it is not about one.
    pub field: String,
    /// What is wrong, and what to do.
    pub message: String,
}

/// Kinds of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A pod has its network; its containers start next.
    Created,
    /// A container runs.
    Started,
    /// A container ended.
    Ended,
    /// A pod is ready for traffic.
    Ready,
    /// A pod is not ready any more.
    Unready,
    /// A pod is asked to end.
    Terminating,
    /// A pod is gone.
    Deleted,
    /// A manifest or a pod cannot be used.
    Refused,
    /// A manifest that was refused is not any more.
    Mended,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.what {
            What::Created => "created",
            What::Started => "started",
            What::Ended => "ended",
            What::Ready => "ready",
            What::Unready => "not ready",
            What::Terminating => "terminating",
            What::Deleted => "deleted",
            What::Refused => "refused",
            What::Mended => "mended",
        };
        let colon = if self.detail.is_empty() { "" } else { ": " };
        write!(f, "{} {what}{colon}{}", self.subject, self.detail)
    }
}
