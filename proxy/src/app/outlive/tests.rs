//! Against tables that are written here, and one of the kernel's.

use std::fs;
use std::future::{pending, ready};
use std::net::{Ipv6Addr, TcpListener};
use std::pin::pin;

use tempfile::TempDir;

use super::*;

const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
const DEADLINE: Duration = Duration::from_secs(28);

/// A row of a socket of IPv4 at a port, in a state.
fn row(port: u16, state: &str) -> String {
    format!(
        "   0: 00000000:{port:04X} 0100007F:C350 {state} 00000000:00000000 00:00000000 00000000  1000        0 1 1\n"
    )
}

/// A pod in which somebody listens at these ports.
struct Pod(TempDir);

impl Pod {
    fn listening(ports: &[u16]) -> Self {
        let pod = Self(TempDir::new().unwrap());
        pod.listen(ports);
        pod
    }

    /// Beside the sidecar, which has a connection of the app's port.
    fn listen(&self, ports: &[u16]) {
        let listeners = OWN.iter().chain(ports).map(|port| row(*port, "0A"));
        let table: String = listeners.chain([row(8080, "01")]).collect();
        fs::write(self.0.path().join("tcp"), format!("{HEAD}{table}")).unwrap();
    }

    fn app(&self) -> App {
        App {
            tables: ["tcp", "tcp6"].map(|name| self.0.path().join(name)).into(),
            listened: false,
            shows: true,
        }
    }
}

/// When an ordinary sidecar that was told to end drains, with the reason and what is left of the deadline.
async fn drains(
    app: App,
    dismissed: impl Future<Output = &'static str>,
) -> (Duration, &'static str, Duration) {
    let told = async {
        sleep(Duration::from_secs(5)).await;
        "SIGTERM"
    };
    let begun = Instant::now() + Duration::from_secs(5);
    let (why, left) = end(Some(app), pin!(told), pin!(dismissed), DEADLINE).await;
    (begun.elapsed(), why, left)
}

#[tokio::test(start_paused = true)]
async fn it_goes_on_for_as_long_as_the_app_listens() {
    let pod = Pod::listening(&[8080]);
    let stops = async {
        sleep(Duration::from_secs(5 + 12)).await;
        pod.listen(&[]);
        pending::<()>().await;
    };
    let (after, why, left) = tokio::select! {
        end = drains(pod.app(), pending()) => end,
        () = stops => unreachable!(),
    };
    assert_eq!(why, "the app no longer listens");
    let seconds = after.as_secs_f64();
    assert!((12.9..13.3).contains(&seconds), "{seconds}");
    assert_eq!(left, DEADLINE - after);
}

#[tokio::test(start_paused = true)]
async fn an_app_that_ended_at_once_holds_up_nobody() {
    let pod = Pod::listening(&[8080]);
    let stops = async {
        // Seen before, gone when the sidecar is told.
        sleep(Duration::from_secs(4)).await;
        pod.listen(&[]);
        pending::<()>().await;
    };
    let (after, why, _) = tokio::select! {
        end = drains(pod.app(), pending()) => end,
        () = stops => unreachable!(),
    };
    assert_eq!(why, "the app no longer listens");
    assert!(after < Duration::from_millis(1_300), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn an_app_whose_end_cannot_be_seen_has_the_mesh_until_the_deadline_is_near() {
    let (silent, stubborn) = (Pod::listening(&[]), Pod::listening(&[8080]));
    // Nor is there a table at all.
    let nowhere = App {
        tables: vec![silent.0.path().join("none")],
        ..silent.app()
    };
    // One container has listened, and another goes on.
    let one_of_several = App {
        listened: true,
        shows: false,
        ..silent.app()
    };
    for app in [silent.app(), stubborn.app(), nowhere, one_of_several] {
        let (after, why, left) = drains(app, pending()).await;
        assert_eq!(
            (why, after),
            ("the deadline is near", Duration::from_secs(25))
        );
        assert_eq!(left, Duration::from_secs(3));
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_dismissed_waits_for_nobody() {
    let pod = Pod::listening(&[8080]);
    let later = async {
        sleep(Duration::from_secs(5 + 2)).await;
        "drain"
    };
    let (after, why, _) = drains(pod.app(), later).await;
    assert_eq!((why, after), ("drain", Duration::from_secs(2)));
    let never = pin!(pending::<&str>());
    let end = end(Some(pod.app()), never, pin!(ready("drain")), DEADLINE).await;
    assert_eq!(end, ("drain", DEADLINE));
}

#[tokio::test(start_paused = true)]
async fn a_native_sidecar_ends_when_it_is_told() {
    let never = pin!(pending::<&str>());
    let end = end(None, pin!(ready("SIGTERM")), never, DEADLINE).await;
    assert_eq!(end, ("SIGTERM", DEADLINE));
}

#[test]
fn the_kernel_tells_who_listens() {
    let _listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0))
        .or_else(|_| TcpListener::bind(("127.0.0.1", 0)))
        .unwrap();
    assert!(App::of_this_pod(Outlive::No).is_none());
    for outlive in [Outlive::Listeners, Outlive::Deadline] {
        assert!(App::of_this_pod(outlive).expect("one").listens());
    }
    // Rows of sockets that are none, or not understood, are nobody's.
    for table in ["", HEAD, "one\ntwo\n", "one\n0: nonsense 0:0 0A\n"] {
        assert!(!any_listens(table.as_bytes()).unwrap(), "{table:?}");
    }
}
