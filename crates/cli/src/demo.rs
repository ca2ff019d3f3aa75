//! `tulle demo`: a real mesh on this machine, shown step by step with the evidence measured there and then.
//!
//! `stage` brings the application up and gives the steps their tools, `steps` are the story, `report` is what is said.

mod report;
mod stage;
mod steps;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;

use report::{Evidence, Report};
use stage::Stage;
use tulle_runtime::signals;
use tulle_sandbox::Node;

use crate::error::CliError;
use crate::narrate::Format;
use crate::output;

/// How long pods may take on their way out.
const GRACE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, Args)]
#[command(after_help = help())]
pub(crate) struct DemoArgs {
    /// Leave it running after the last step, and print commands to try
    #[arg(long)]
    keep: bool,
    /// How to say what happened: as JSON it is one document at the end, and with --keep then a line for each event
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// Run only the steps whose names contain this; may be repeated
    #[arg(long, value_name = "NAME")]
    step: Vec<String>,
}

fn help() -> String {
    format!(
        "Steps: {}.\n\n\
         It needs Linux with network namespaces and nf_tables, as root or with unprivileged user namespaces. \
         Everything lives in namespaces of its own and ends with the command.\n\n\
         Exit status 0 only if every step held.",
        steps::ALL.map(|step| step.name).join(", ")
    )
}

/// Runs the demo. Call it before the process has a second thread: it moves into namespaces of its own.
pub(crate) fn run(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    known(&args.step)?;
    let node = tulle_sandbox::enter_node()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut report = Report::new(args.output == Format::Text);
        let shown = tokio::select! {
            biased;
            // Nobody waits for the end of a step that he does not want to see. Dropping the stage takes it down.
            signal = signals::shutdown() => Err(signal),
            stage = show(node, args, &mut report) => Ok(stage?),
        };
        let stage = match shown {
            Ok(stage) => stage,
            Err(signal) => {
                output::note(&format!("Ended by {signal}."));
                return Ok(ExitCode::from(if signal == "SIGINT" { 130 } else { 143 }));
            }
        };
        let held = report.finish()?;
        if args.keep {
            stage.keep(args.output).await?;
        }
        stage.leave(GRACE).await;
        Ok(if held {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    })
}

/// Brings everything up and plays the steps.
async fn show(node: Node, args: &DemoArgs, report: &mut Report) -> anyhow::Result<Stage> {
    let stage = Stage::build(node, args.keep, report)
        .await
        .context("cannot bring up the demo application")?;
    play(&stage, report, &args.step).await?;
    Ok(stage)
}

/// Refuses a word that is in no step's name: nothing would be shown, and all of it would have held.
fn known(words: &[String]) -> anyhow::Result<()> {
    let names = steps::ALL.map(|step| step.name);
    match words
        .iter()
        .find(|word| !names.iter().any(|name| name.contains(word.as_str())))
    {
        None => Ok(()),
        Some(word) => anyhow::bail!(
            "--step {word:?} is in the name of no step; the steps are: {}",
            names.join(", ")
        ),
    }
}

async fn play(stage: &Stage, report: &mut Report, only: &[String]) -> Result<(), CliError> {
    for step in steps::ALL {
        if !only.is_empty() && !only.iter().any(|word| step.name.contains(word.as_str())) {
            continue;
        }
        report.announce(step.name, step.promise)?;
        let mut evidence = Evidence::default();
        let started = Instant::now();
        let result = (step.run)(stage, &mut evidence).await;
        report.record(
            (step.name, step.promise),
            started.elapsed(),
            evidence,
            result.as_ref().err(),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_does_not_exist_is_refused_with_the_names_of_those_that_do() {
        let error = known(&["canary".to_owned(), "typo".to_owned()]).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("typo") && text.contains("mutual TLS"),
            "{text}"
        );
        known(&[]).unwrap();
        known(&["TLS".to_owned()]).unwrap();
    }
}
