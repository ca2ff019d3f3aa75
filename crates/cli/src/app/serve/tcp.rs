//! Opaque TCP: an echo that respects half-close, and a server that speaks first.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tulle_runtime::drain::DrainWatch;

use super::App;

/// Sends back what arrives until the client closes its side, then closes the other.
pub(super) async fn echo(stream: TcpStream, watch: DrainWatch) {
    relay(stream, &watch, |_| {}).await;
}

/// Sends a banner at once, then what arrives in upper case.
pub(super) async fn server_first(mut stream: TcpStream, app: &App, watch: DrainWatch) {
    let banner = format!("tulle-app {} {} {} ready\n", app.name, app.version, app.pod);
    if stream.write_all(banner.as_bytes()).await.is_ok() {
        relay(stream, &watch, <[u8]>::make_ascii_uppercase).await;
    }
}

/// A connection that broke has nobody left to tell, so errors only end it.
async fn relay(mut stream: TcpStream, watch: &DrainWatch, change: impl Fn(&mut [u8])) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = tokio::select! {
            // What has arrived is still answered during a drain.
            biased;
            read = stream.read(&mut buffer) => read,
            () = watch.draining() => Ok(0),
        };
        let Ok(count @ 1..) = read else { break };
        change(&mut buffer[..count]);
        if stream.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    // The client may have gone already.
    let _ = stream.shutdown().await;
}
