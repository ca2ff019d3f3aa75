//! A table of HTTP/1's edge cases: what a client sends, what the backend must see, and what comes back.
//!
//! Each row is played against our outbound and our inbound listener, with raw clients and a backend that records every
//! byte, and against Envoy and nginx as oracles. Where an oracle deviates the row says how and why, and fails when that
//! is no longer so: in what it passes and refuses (`table/deviations`), and where it agrees with us on that in statuses,
//! fields and the connection's end (`table/details`). `table/rows` has the rows by subject.

mod backend;
mod client;
mod details;
mod deviations;
mod fuzz;
mod message;
mod outcome;
mod row;
mod rows;
mod subject;

use std::collections::HashMap;

use anyhow::ensure;
use tokio::sync::OnceCell;
use tulle_tests::Mesh;

use deviations::Deviation;
use row::Listener;
use subject::is_for;

tulle_tests::cases! {
    row_1_content_length_with_transfer_encoding_is_refused;
    row_2_any_transfer_encoding_but_one_chunked_is_refused;
    row_3_lengths_that_are_no_plain_number_are_refused;
    row_4_line_ends_folds_and_controls_are_refused;
    row_5_early_data_never_becomes_a_request;
    row_6_a_body_that_nobody_reads_never_becomes_a_request;
    row_8_the_host_is_one_and_valid;
    row_12_what_only_a_proxy_may_say_is_taken_out_or_overwritten;
    row_21_what_is_too_large_is_refused;
    the_rest_of_the_table_holds;
    the_table_has_as_many_rows_as_were_promised;
    mutated_rows_never_become_another_request;
    envoy_agrees_where_the_table_says_so ["envoy"];
    nginx_agrees_where_the_table_says_so ["nginx"];
}

async fn row_1_content_length_with_transfer_encoding_is_refused(mesh: &Mesh) -> anyhow::Result<()> {
    class(mesh, 1).await
}

async fn row_2_any_transfer_encoding_but_one_chunked_is_refused(mesh: &Mesh) -> anyhow::Result<()> {
    class(mesh, 2).await
}

async fn row_3_lengths_that_are_no_plain_number_are_refused(mesh: &Mesh) -> anyhow::Result<()> {
    class(mesh, 3).await
}

async fn row_4_line_ends_folds_and_controls_are_refused(mesh: &Mesh) -> anyhow::Result<()> {
    class(mesh, 4).await
}

async fn row_6_a_body_that_nobody_reads_never_becomes_a_request(mesh: &Mesh) -> anyhow::Result<()> {
    class(mesh, 6).await
}

async fn row_8_the_host_is_one_and_valid(mesh: &Mesh) -> anyhow::Result<()> {
    class(mesh, 8).await
}

async fn row_12_what_only_a_proxy_may_say_is_taken_out_or_overwritten(
    mesh: &Mesh,
) -> anyhow::Result<()> {
    class(mesh, 12).await
}

async fn row_5_early_data_never_becomes_a_request(mesh: &Mesh) -> anyhow::Result<()> {
    class(mesh, 5).await
}

async fn row_21_what_is_too_large_is_refused(mesh: &Mesh) -> anyhow::Result<()> {
    class(mesh, 21).await
}

async fn the_rest_of_the_table_holds(mesh: &Mesh) -> anyhow::Result<()> {
    class(mesh, 0).await
}

/// Rows that there are at least.
const ROWS: usize = 150;

async fn the_table_has_as_many_rows_as_were_promised(_: &Mesh) -> anyhow::Result<()> {
    let rows = rows::all().len();
    ensure!(rows >= ROWS, "{rows} rows");
    Ok(())
}

/// What became of the rows, played once for all.
#[derive(Debug, Default)]
struct Ours {
    /// What was wrong with rows of a failure class.
    wrong: Vec<(u8, String)>,
    /// The details of each row, by name.
    details: HashMap<&'static str, String>,
}

static OURS: OnceCell<Ours> = OnceCell::const_new();

async fn class(mesh: &Mesh, class: u8) -> anyhow::Result<()> {
    ensure!(
        rows::all().iter().any(|row| row.class == class),
        "no row covers {class}"
    );
    let ours = OURS.get_or_try_init(|| play_ours(mesh)).await?;
    let wrong: Vec<_> = ours
        .wrong
        .iter()
        .filter(|(of, _)| *of == class)
        .map(|(_, why)| why.as_str())
        .collect();
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

async fn play_ours(mesh: &Mesh) -> anyhow::Result<Ours> {
    let arena = mesh.apply("table-ours", subject::manifests()).await?;
    let (outbound, inbound) = subject::ours(&arena).await?;
    let mut ours = Ours::default();
    for (listener, subject) in [(Listener::Outbound, outbound), (Listener::Inbound, inbound)] {
        let mut rows = rows::all();
        rows.retain(|row| is_for(row, listener));
        for (row, outcome) in rows.iter().zip(subject.play(&rows).await?) {
            if let Err(why) = outcome.compare(row) {
                let name = row.name;
                let summary = outcome.summary();
                let line = format!("{listener:?}, {name} (RFC {}): {why} [{summary}]", row.rfc);
                ours.wrong.push((row.class, line));
            }
            // What an oracle adds about its client our inbound listener does as well; the outbound one adds nothing.
            let details = outcome.details(row);
            ours.details.entry(row.name).or_insert(details);
        }
    }
    Ok(ours)
}

async fn mutated_rows_never_become_another_request(mesh: &Mesh) -> anyhow::Result<()> {
    let arena = mesh.apply("table-fuzz", subject::manifests()).await?;
    let (outbound, inbound) = subject::ours(&arena).await?;
    let mut wrong = fuzz::run(&outbound, 1).await?;
    wrong.extend(fuzz::run(&inbound, 2).await?);
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

async fn envoy_agrees_where_the_table_says_so(mesh: &Mesh) -> anyhow::Result<()> {
    let arena = mesh.apply("table-envoy", subject::envoy().yaml()).await?;
    agrees(&arena, "envoy", deviations::ENVOY, details::ENVOY).await
}

async fn nginx_agrees_where_the_table_says_so(mesh: &Mesh) -> anyhow::Result<()> {
    let arena = mesh.apply("table-nginx", subject::nginx().yaml()).await?;
    agrees(&arena, "nginx", deviations::NGINX, details::NGINX).await
}

async fn agrees(
    arena: &tulle_tests::Arena<'_>,
    oracle: &str,
    deviations: &[Deviation],
    details: &[Deviation],
) -> anyhow::Result<()> {
    let ours = OURS.get_or_try_init(|| play_ours(arena.mesh())).await?;
    let subject = subject::oracle(arena, oracle)?;
    let rows = rows::all();
    let mut wrong = deviations::unknown(deviations, &rows);
    wrong.extend(deviations::unknown(details, &rows));
    for (row, outcome) in rows.iter().zip(subject.play(&rows).await?) {
        let agreed = outcome::expected(row);
        let deviates = deviations::of(deviations, row.name);
        let expected = deviates.unwrap_or(&agreed);
        let summary = outcome.summary();
        if summary != expected {
            wrong.push(format!(
                "(\"{}\", {summary:?}), // instead of {expected:?}",
                row.name
            ));
        } else if deviates == Some(&agreed) {
            wrong.push(format!("{}: it does not deviate any more", row.name));
        } else if deviates.is_none() {
            let ours = ours.details.get(row.name).map_or("", String::as_str);
            let theirs = outcome.details(row);
            let said = deviations::of(details, row.name);
            if theirs != said.unwrap_or(ours) {
                wrong.push(format!("(\"{}\", {theirs:?}), // ours: {ours:?}", row.name));
            } else if said == Some(ours) {
                wrong.push(format!("{}: its details do not deviate any more", row.name));
            }
        }
    }
    ensure!(wrong.is_empty(), "{oracle}:\n{}", wrong.join("\n"));
    Ok(())
}
