//! Where a person types: the program under its own name, and a home for everything that it might leave behind.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use tulle_tests::Ran;

/// How long something that the program does may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks at what another process does.
const LOOK: Duration = Duration::from_millis(25);
/// Exit status of `timeout` if the program did not end by itself.
const TIMED_OUT: i32 = 124;
/// Where the program keeps what must not stay: its socket, and its temporary files.
const KEPT: [(&str, &str); 2] = [("XDG_RUNTIME_DIR", "runtime"), ("TMPDIR", "tmp")];

/// The terminals of one person.
pub(crate) struct Terminal {
    program: PathBuf,
    home: tempfile::TempDir,
    /// How many programs were left running, each with a log of its own.
    started: Cell<u32>,
    /// Beside this executable, because a hard link cannot leave its file system.
    _link: tempfile::TempDir,
}

impl Terminal {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let this = std::env::current_exe()?;
        let beside = this.parent().context("an executable is in a directory")?;
        let link = tempfile::tempdir_in(beside)?;
        let program = link.path().join("tulle");
        fs::hard_link(&this, &program)?;
        let home = tempfile::tempdir()?;
        for (_, folder) in KEPT {
            fs::create_dir(home.path().join(folder))?;
        }
        Ok(Self {
            program,
            home,
            started: Cell::new(0),
            _link: link,
        })
    }

    /// A directory with a manifest.
    pub(crate) fn manifests(&self, text: &str) -> anyhow::Result<String> {
        let directory = self.home.path().join("manifests");
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("all.yaml"), text)?;
        Ok(directory.display().to_string())
    }

    /// The program, as a word of a line for the shell.
    pub(crate) fn program(&self) -> String {
        self.program.display().to_string()
    }

    /// Runs `tulle` to its end.
    pub(crate) fn tulle(&self, arguments: &[&str], input: &str) -> anyhow::Result<Ran> {
        let mut command = self.command(&self.program);
        command.args(arguments);
        finish(command, input)
    }

    /// Runs another program to its end.
    pub(crate) fn program_at(&self, program: &str, arguments: &[&str]) -> anyhow::Result<Ran> {
        let mut command = self.command(Path::new(program));
        command.args(arguments);
        finish(command, "")
    }

    /// Runs `tulle` to its end, and asks it to end if that has not come within `limit`.
    pub(crate) fn tulle_within(&self, limit: Duration, arguments: &[&str]) -> anyhow::Result<Ran> {
        let mut command = self.command(Path::new("timeout"));
        command
            .arg(limit.as_secs().to_string())
            .arg(&self.program)
            .args(arguments);
        let ran = finish(command, "")?;
        ensure!(
            ran.status != TIMED_OUT,
            "not at its end after {limit:?}: {ran}"
        );
        Ok(ran)
    }

    /// Runs a line as a shell does.
    pub(crate) fn shell(&self, line: &str) -> anyhow::Result<Ran> {
        let mut command = self.command(Path::new("/bin/sh"));
        command.args(["-c", line]);
        finish(command, "")
    }

    /// Starts `tulle` and leaves it running.
    pub(crate) fn start(&self, arguments: &[&str]) -> anyhow::Result<Running> {
        self.start_at(&self.program, arguments)
    }

    /// As [`Terminal::start`], of another program.
    pub(crate) fn start_at(&self, program: &Path, arguments: &[&str]) -> anyhow::Result<Running> {
        let number = self.started.replace(self.started.get() + 1);
        let log = self.home.path().join(format!("log-{number}"));
        let output = File::create(&log)?;
        let mut command = self.command(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = command.spawn()?;
        Ok(Running { child, log })
    }

    /// Fails if anything is left where the program keeps things.
    pub(crate) fn nothing_left(&self) -> anyhow::Result<()> {
        for (_, folder) in KEPT {
            let entries = fs::read_dir(self.home.path().join(folder))?.flatten();
            let left: Vec<_> = entries.map(|entry| entry.path()).collect();
            ensure!(left.is_empty(), "left behind: {left:?}");
        }
        Ok(())
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        for (variable, folder) in KEPT {
            command.env(variable, self.home.path().join(folder));
        }
        command
    }
}

fn finish(mut command: Command, input: &str) -> anyhow::Result<Ran> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take().context("it has an input")?;
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Ran {
        status: output.status.code().context("a signal ended it")?,
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    })
}

/// A program that runs in another terminal. It is killed when dropped.
pub(crate) struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// All that it has said.
    pub(crate) fn said(&self) -> anyhow::Result<String> {
        Ok(fs::read_to_string(&self.log)?)
    }

    /// Waits until it has said this.
    pub(crate) fn wait_for(&mut self, words: &str) -> anyhow::Result<String> {
        let end = Instant::now() + DEADLINE;
        loop {
            let ended = self.child.try_wait()?;
            let said = self.said()?;
            if said.contains(words) {
                return Ok(said);
            }
            if let Some(status) = ended {
                bail!("it ended with {status} before it said {words:?}: {said}");
            }
            ensure!(Instant::now() < end, "it does not say {words:?}: {said}");
            sleep(LOOK);
        }
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ctrl-C.
    pub(crate) fn interrupt(&self) -> anyhow::Result<()> {
        let kill = format!("kill -INT {}", self.child.id());
        let status = Command::new("/bin/sh").args(["-c", &kill]).status()?;
        ensure!(status.success(), "{kill} failed");
        Ok(())
    }

    /// Waits for its end; the exit status.
    pub(crate) fn end(mut self) -> anyhow::Result<i32> {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return status.code().context("a signal ended it");
            }
            ensure!(
                Instant::now() < end,
                "it does not end; it said {}",
                self.said()?
            );
            sleep(LOOK);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended is no longer there to be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
