//! Programs that run on the node itself, such as the control plane: supervised, and stopped and started on demand.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::Error;
use crate::kubelet::Kubelet;
use crate::pod::log::Log;
use crate::pod::process;
use crate::view::What;

const RESTART_DELAY: Duration = Duration::from_millis(200);
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// A program on the node. It ends with the sandbox.
#[derive(Debug, Clone)]
pub struct HostProcess {
    wanted: Arc<watch::Sender<Wanted>>,
    pid: watch::Receiver<Option<u32>>,
    log: Log,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Running,
    Stopped(Signal),
}

impl HostProcess {
    pub(crate) fn start(
        name: &str,
        argv: Vec<String>,
        environment: Vec<(String, String)>,
        log: PathBuf,
        kubelet: Arc<Kubelet>,
    ) -> Result<Self, Error> {
        if argv.is_empty() {
            return Err(Error::Missing {
                kind: "program for",
                name: name.to_owned(),
            });
        }
        let wanted = Arc::new(watch::Sender::new(Wanted::Running));
        let (running, pid) = watch::channel(None);
        let log = Log::new(log);
        let supervisor = Supervisor {
            name: name.to_owned(),
            argv,
            environment,
            log: log.clone(),
            running,
            kubelet: kubelet.clone(),
        };
        let orders = wanted.subscribe();
        let cancelled = kubelet.tasks.cancelled();
        kubelet.tasks.spawn("host", async move {
            tokio::select! {
                () = supervisor.run(orders) => {}
                () = cancelled => {}
            }
        });
        Ok(Self { wanted, pid, log })
    }

    /// Its process id in the node, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        *self.pid.borrow()
    }

    /// Ends it with SIGKILL; it stays down until [`HostProcess::resume`].
    pub async fn kill(&self) {
        self.stop(Signal::SIGKILL).await;
    }

    /// Ends it with SIGTERM; it stays down until [`HostProcess::resume`].
    pub async fn terminate(&self) {
        self.stop(Signal::SIGTERM).await;
    }

    async fn stop(&self, signal: Signal) {
        self.wanted.send_replace(Wanted::Stopped(signal));
        // Ends only if the supervisor has, and the process with it.
        let _ = self.pid.clone().wait_for(Option::is_none).await;
    }

    /// Starts it again and waits until it runs.
    pub async fn resume(&self) {
        self.wanted.send_replace(Wanted::Running);
        let _ = self.pid.clone().wait_for(Option::is_some).await;
    }

    /// What it wrote, as far as it is kept.
    #[must_use]
    pub fn logs(&self) -> Vec<u8> {
        self.log.read()
    }
}

/// Resolves when the process is to stop, with the signal for it.
async fn ordered(orders: &mut watch::Receiver<Wanted>) -> Signal {
    match orders
        .wait_for(|wanted| *wanted != Wanted::Running)
        .await
        .as_deref()
    {
        Ok(Wanted::Stopped(signal)) => *signal,
        // Nobody holds it any more.
        _ => Signal::SIGTERM,
    }
}

struct Supervisor {
    name: String,
    argv: Vec<String>,
    environment: Vec<(String, String)>,
    log: Log,
    running: watch::Sender<Option<u32>>,
    kubelet: Arc<Kubelet>,
}

impl Supervisor {
    async fn run(self, mut orders: watch::Receiver<Wanted>) {
        while orders
            .wait_for(|wanted| *wanted == Wanted::Running)
            .await
            .is_ok()
        {
            match self.spawn() {
                Ok(child) => self.attend(child, &mut orders).await,
                Err(error) => {
                    let problem = tulle_runtime::causes::chain(&error);
                    self.kubelet.tell(self.name.clone(), What::Refused, problem);
                }
            }
            sleep(RESTART_DELAY).await;
        }
    }

    async fn attend(&self, mut child: Child, orders: &mut watch::Receiver<Wanted>) {
        let pid = child.id().unwrap_or_default();
        self.kubelet.tell(self.name.clone(), What::Started, "");
        self.running.send_replace(Some(pid));
        tokio::select! {
            _ = child.wait() => {}
            signal = ordered(orders) => {
                process::signal(pid, signal);
                if timeout(STOP_DEADLINE, child.wait()).await.is_err() {
                    process::signal(pid, Signal::SIGKILL);
                    let _ = child.wait().await;
                }
            }
        }
        self.kubelet.tell(self.name.clone(), What::Ended, "");
        self.running.send_replace(None);
    }

    fn spawn(&self) -> Result<Child, Error> {
        let what = || format!("start {}", self.name);
        let (output, log) = self.log.writer().map_err(Error::io(what()))?;
        self.kubelet.tasks.spawn_connection("log", log);
        let errors = output.try_clone().map_err(Error::io(what()))?;
        let name = self.argv.first().map_or("", String::as_str);
        let mut command = Command::new(if name == "tulle" {
            "/proc/self/exe"
        } else {
            name
        });
        command
            .arg0(name)
            .args(self.argv.iter().skip(1))
            .env_clear();
        command.envs(
            self.kubelet
                .base_environment
                .iter()
                .chain(&self.environment)
                .map(|(name, value)| (name, value)),
        );
        command
            .stdin(Stdio::null())
            .stdout(Stdio::from(output))
            .stderr(Stdio::from(errors))
            // Not in the terminal's group: Ctrl-C ends the pods first, and this with the sandbox.
            .process_group(0)
            .kill_on_drop(true);
        command.spawn().map_err(Error::io(what()))
    }
}
