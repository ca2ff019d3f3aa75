//! `tulle app load`: open-loop load.
//!
//! Request n is due at start + n / rate, whatever became of the requests before it, and its latency counts from when it
//! was due: a server that stalls cannot slow the generator down and so hide the stall. Nothing is retried.

mod exchange;
mod report;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use http::{HeaderName, HeaderValue, Method};
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout_at};
use tulle_runtime::env::parse_duration;
use tulle_runtime::signals;
use tulle_runtime::tasks::Tasks;

use crate::app::call::header;
use crate::app::target::Target;
use crate::error::CliError;
use crate::output;
use exchange::Exchange;
use report::{Answerer, Report};

#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  tulle app load --url http://web/ --rate 300 --duration 30s
  tulle app load --url http://reviews/ --rate 100 --method POST --body-size 1000
  tulle app load --url grpc://ledger:9000 --rate 50
  tulle app load --url tcp://greeter:2525 --server-first --rate 20

Prints a JSON line each second and a summary at the end, also after SIGTERM: what was sent, what failed and why, \
latency from when each request was due, and which versions and pods answered.
Each request carries an id, ID-PREFIX-N: ask the apps for `/counts?prefix=ID-PREFIX` to see what was processed twice.")]
pub(crate) struct LoadArgs {
    /// Where to send: http://, grpc:// or tcp://
    #[arg(long)]
    url: String,
    /// Requests a second
    #[arg(long, default_value_t = 100.0, value_parser = rate)]
    rate: f64,
    /// How long to send; without it, until SIGTERM or SIGINT
    #[arg(long, value_parser = parse_duration)]
    duration: Option<Duration>,
    /// HTTP method
    #[arg(short = 'X', long, default_value = "GET")]
    method: Method,
    /// Header as NAME:VALUE; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME:VALUE", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Bytes in each request's body
    #[arg(long, default_value_t = 0)]
    body_size: usize,
    /// Most requests in flight; others wait, and their waiting counts
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    concurrency: u32,
    /// How long after it was due a request may end
    #[arg(long, value_parser = parse_duration, default_value = "10s")]
    timeout: Duration,
    /// HTTP/2 without TLS, instead of HTTP/1.1
    #[arg(long)]
    http2: bool,
    /// A new connection for each request
    #[arg(long)]
    no_reuse: bool,
    /// The TCP server speaks first: wait for its banner
    #[arg(long)]
    server_first: bool,
    /// Begin of each request's id; random by default
    #[arg(long)]
    id_prefix: Option<String>,
    /// Print nothing but the summary
    #[arg(long)]
    summary_only: bool,
    /// End with status 1 if any request failed
    #[arg(long)]
    expect_no_failures: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    let parsed = text
        .parse()
        .ok()
        .filter(|rate| (0.01..=1_000_000.0).contains(rate));
    parsed.ok_or_else(|| "expected requests a second, from 0.01 to 1000000".to_owned())
}

pub(crate) async fn run(args: LoadArgs) -> Result<ExitCode, CliError> {
    let stop = async { _ = signals::shutdown().await };
    let report = generate(&args, stop, output::line).await?;
    output::line(&report.summary())?;
    let failed = args.expect_no_failures && report.failed() > 0;
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Sends until the duration is over or `stop` resolves, and waits for what is in flight.
async fn generate(
    args: &LoadArgs,
    stop: impl Future<Output = ()>,
    mut progress: impl FnMut(&serde_json::Value) -> Result<(), CliError>,
) -> Result<Arc<Report>, CliError> {
    let prefix = args
        .id_prefix
        .clone()
        .unwrap_or_else(|| format!("{:08x}", fastrand::u32(..)));
    let report = Arc::new(Report::new(&args.url, args.rate, &prefix));
    let connections = Tasks::new();
    let target = Arc::new(Target::parse(&args.url)?);
    let exchange = Arc::new(Exchange::new(args, target, prefix, connections.clone())?);
    let permits = Arc::new(Semaphore::new(args.concurrency as usize));
    let requests = Tasks::new();

    let mut stop = std::pin::pin!(stop);
    let start = Instant::now();
    let mut ticks = interval_at(start + Duration::from_secs(1), Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    for number in 0_u64.. {
        let offset = Duration::from_secs_f64(number as f64 / args.rate);
        if args.duration.is_some_and(|duration| offset >= duration) {
            break;
        }
        let due = start + offset;
        let stopped = loop {
            tokio::select! {
                // The end and the report come first: both are rare, and requests catch up.
                biased;
                () = &mut stop => break true,
                _ = ticks.tick() => {
                    let line = report.progress();
                    if !args.summary_only {
                        progress(&line)?;
                    }
                }
                () = sleep_until(due) => break false,
            }
        };
        if stopped {
            break;
        }
        report.sent();
        let (report, exchange, permits) = (report.clone(), exchange.clone(), permits.clone());
        let deadline = due + args.timeout;
        requests.spawn_connection("request", async move {
            let result = send(&exchange, &permits, number, deadline).await;
            report.done(number, due.elapsed(), result);
        });
    }
    requests
        .shutdown(args.timeout + Duration::from_secs(1))
        .await;
    report.end(start.elapsed());
    connections.cancel();
    Ok(report)
}

/// Sends one request when there is room for it, if that is in time.
async fn send(
    exchange: &Exchange,
    permits: &Semaphore,
    number: u64,
    deadline: Instant,
) -> Result<Answerer, String> {
    let exchanged = timeout_at(deadline, async {
        // The semaphore is never closed; a permit lives as long as the request.
        let _permit = permits.acquire().await;
        exchange.run(number).await
    });
    exchanged
        .await
        .unwrap_or_else(|_| Err("timeout".to_owned()))
}

#[cfg(test)]
mod tests;
