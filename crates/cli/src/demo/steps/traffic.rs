//! What the mesh does with requests that all go well.

use std::time::Duration;

use super::RATE;
use crate::demo::report::Evidence;
use crate::demo::stage::Stage;
use crate::mesh::Summary;

pub(super) async fn protocols(stage: &Stage, evidence: &mut Evidence) -> anyhow::Result<()> {
    let runs = [
        ("HTTP/1.1", "http://web/", vec![]),
        ("HTTP/2", "http://web/", vec!["--http2"]),
        ("gRPC", "grpc://ledger:9000", vec![]),
        (
            "TCP, server speaks first",
            "tcp://greeter:2525",
            vec!["--server-first"],
        ),
    ];
    let mut loads = Vec::new();
    for (name, url, more) in &runs {
        loads.push((name, stage.load(url, RATE / 4, 1.5, more)?));
    }
    for (name, load) in loads {
        let summary = load.summary().await?;
        evidence.hold(*name, summary.line(), summary.failed == 0 && summary.ok > 0);
    }
    Ok(())
}

pub(super) async fn balancing(stage: &Stage, evidence: &mut Evidence) -> anyhow::Result<()> {
    let pods = stage.pods("web").len();
    let load = stage.load(
        "http://web/",
        RATE,
        2.0,
        &["--http2", "--concurrency", "64"],
    )?;
    let summary = load.summary().await?;
    evidence.tell("one HTTP/2 connection", summary.line());
    let fair = summary.ok as f64 / pods as f64;
    for (pod, count) in &summary.pods {
        let share = share(*count, summary.ok);
        evidence.hold(
            pod,
            format!("{count} requests, {share:.0} %"),
            (*count as f64) > fair * 0.6,
        );
    }
    evidence.hold(
        "pods that answered",
        format!("{} of {pods}", summary.pods.len()),
        summary.pods.len() == pods,
    );
    evidence.hold("failed", summary.failed, summary.failed == 0);
    Ok(())
}

pub(super) async fn canary(stage: &Stage, evidence: &mut Evidence) -> anyhow::Result<()> {
    let before = stage
        .load("http://reviews/", RATE, 2.0, &[])?
        .summary()
        .await?;
    split(evidence, (90, 10), &before);
    for next in [(50, 50), (0, 100)] {
        stage.edit("25-reviews-route.yaml", |text| reweigh(text, next))?;
        // The change travels while the load of the next measurement starts.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let after = stage
            .load("http://reviews/", RATE, 2.0, &[])?
            .summary()
            .await?;
        split(evidence, next, &after);
    }
    stage.edit("25-reviews-route.yaml", |text| reweigh(text, (90, 10)))
}

fn split(evidence: &mut Evidence, (one, two): (u32, u32), summary: &Summary) {
    let measured = share(summary.versions.get("v2").copied().unwrap_or(0), summary.ok);
    let held = summary.failed == 0 && (measured - f64::from(two)).abs() < 8.0;
    evidence.hold(
        format!("{one}/{two}"),
        format!("v2 got {measured:.1} %; {}", summary.line()),
        held,
    );
}

fn reweigh(text: &str, (one, two): (u32, u32)) -> String {
    let mut weights = [one, two].into_iter();
    let lines = text.lines().map(|line| match line.split_once("weight: ") {
        Some((indent, _)) => match weights.next() {
            Some(weight) => format!("{indent}weight: {weight}"),
            None => line.to_owned(),
        },
        None => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 * 100.0 / whole as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_rewritten_in_order() {
        let text = "a:\n  weight: 90\nb:\n  weight: 10\n";
        assert_eq!(
            reweigh(text, (0, 100)),
            "a:\n  weight: 0\nb:\n  weight: 100\n"
        );
    }
}
