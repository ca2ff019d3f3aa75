//! Waiting for one child while passing on the signals that end a program.

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::Error;

const PASSED_ON: [Signal; 4] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
];

/// Signals as something to read, from before the child exists so that none is lost.
pub(super) struct Signals(SignalFd);

impl Signals {
    /// Blocks the signals and opens the descriptor that tells of them.
    pub(super) fn block() -> Result<Self, Error> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGCHLD);
        PASSED_ON.into_iter().for_each(|signal| set.add(signal));
        set.thread_block().map_err(Error::errno("block signals"))?;
        SignalFd::new(&set)
            .map(Self)
            .map_err(Error::errno("wait for signals"))
    }

    /// Reaps every child until `main` ends, and returns its exit status as a shell would.
    pub(super) fn supervise(self, main: u32) -> Result<i32, Error> {
        let main = Pid::from_raw(main.cast_signed());
        loop {
            if let Some(status) = reap(main) {
                return Ok(status);
            }
            let Some(info) = self
                .0
                .read_signal()
                .map_err(Error::errno("read a signal"))?
            else {
                continue;
            };
            // What a terminal sends reaches the whole group by itself; only what a process sent is passed on.
            let from_process = info.ssi_code <= 0;
            if let Ok(signal) = Signal::try_from(info.ssi_signo.cast_signed())
                && PASSED_ON.contains(&signal)
                && from_process
            {
                // Fails only if the child has ended, which the next turn sees.
                let _ = kill(main, signal);
            }
        }
    }
}

/// Undoes [`Signals::block`], which a child inherits.
pub(super) fn unblock_all() -> Result<(), Error> {
    SigSet::empty()
        .thread_set_mask()
        .map_err(Error::errno("unblock signals"))
}

fn reap(main: Pid) -> Option<i32> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == main => return Some(code),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == main => {
                return Some(128 + signal as i32);
            }
            Ok(WaitStatus::StillAlive) => return None,
            // No child at all: it was reaped by somebody else, which nobody here does.
            Err(nix::Error::ECHILD) => return Some(1),
            Ok(_) | Err(_) => {}
        }
    }
}
