//! A web server in the fake guest: says what it was asked, and misbehaves where it is told to.

use offshoot_guest_proto::Tunnel;
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, split};

/// Where it listens.
pub(super) const PORT: u16 = 8000;
const MAX_HEAD: usize = 16 * 1024;
const END: &[u8] = b"\r\n\r\n";

/// Serves one request.
///
/// ```text
/// any, with an upgrade    101, then what comes, back
/// /echo                   the body as it comes, which must be chunked
/// /cookies                cookies and headers for everybody around
/// /away                   a redirect to itself, by the name it has in the VM
/// any other               the head of the request, as text
/// ```
pub(super) async fn serve(mut tunnel: Tunnel) -> io::Result<()> {
    let (head, rest) = head(&mut tunnel).await?;
    let path = head.split(' ').nth(1).unwrap_or("/").split('?').next().unwrap_or("/");
    let upgrade = head.lines().find_map(|line| line.strip_prefix("upgrade: "));
    match (upgrade, path) {
        (Some(protocol), _) => {
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n\r\n"
            );
            tunnel.write_all(answer.as_bytes()).await?;
            echo(tunnel, rest).await
        }
        (None, "/echo") => {
            tunnel.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await?;
            echo(tunnel, rest).await
        }
        (None, "/cookies") => {
            let answer = "HTTP/1.1 200 OK\r\nset-cookie: own=1; Domain=localhost; Path=/\r\n\
                          set-cookie: offshoot-preview=stolen\r\nclear-site-data: \"*\"\r\n\
                          connection: x-hop\r\nx-hop: 1\r\ncontent-length: 0\r\n\r\n";
            close(tunnel, answer).await
        }
        (None, "/away") => {
            let answer = format!(
                "HTTP/1.1 302 Found\r\nlocation: http://localhost:{PORT}/there\r\ncontent-length: 0\r\n\r\n"
            );
            close(tunnel, &answer).await
        }
        (None, _) => {
            let length = head.len();
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\r\n{head}"
            );
            close(tunnel, &answer).await
        }
    }
}

/// The head of a request, and what came behind it.
async fn head(tunnel: &mut Tunnel) -> io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(at) = bytes.windows(END.len()).position(|window| window == END) {
            let rest = bytes.split_off(at + END.len());
            return Ok((String::from_utf8_lossy(&bytes).to_ascii_lowercase(), rest));
        }
        if bytes.len() > MAX_HEAD || tunnel.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

async fn echo(tunnel: Tunnel, first: Vec<u8>) -> io::Result<()> {
    let (mut from, mut to) = split(tunnel);
    to.write_all(&first).await?;
    to.flush().await?;
    copy(&mut from, &mut to).await?;
    to.shutdown().await
}

async fn close(mut tunnel: Tunnel, answer: &str) -> io::Result<()> {
    tunnel.write_all(answer.as_bytes()).await?;
    tunnel.shutdown().await
}
