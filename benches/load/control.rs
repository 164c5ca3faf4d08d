//! Small blocking HTTP calls: readiness, ledger, metrics.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::failure::{Failure, Tried as _};

/// Status and body of one answer, which may take long: a ledger has thousands of lines.
pub(crate) fn call(address: SocketAddr, method: &str, path: &str, body: &str) -> Result<(u16, String), Failure> {
    let what = format!("{method} {path}");
    let mut stream = TcpStream::connect(address).tried(&what)?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).tried(&what)?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).tried(&what)?;
    stream.write_all(body.as_bytes()).tried(&what)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).tried(&what)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Ok((status, if is_chunked { unchunk(body) } else { body.to_owned() }))
}

fn unchunk(mut body: &str) -> String {
    let mut out = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        match usize::from_str_radix(size, 16) {
            Ok(size) if size > 0 && rest.len() >= size => {
                out.push_str(&rest[..size]);
                body = rest[size..].trim_start_matches("\r\n");
            }
            _ => break,
        }
    }
    out
}

/// An address on this machine where nobody listens now.
pub(crate) fn free_address() -> Result<SocketAddr, Failure> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").tried("looking for a free port")?;
    listener.local_addr().tried("looking for a free port")
}

/// The same, for UDP.
pub(crate) fn free_udp_address() -> Result<SocketAddr, Failure> {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").tried("looking for a free port")?;
    socket.local_addr().tried("looking for a free port")
}

/// The sum of a metric over all its labels that contain `label`, as a server shows it; none if it does not.
pub(crate) fn metric(address: SocketAddr, name: &str, label: &str) -> Result<Option<f64>, Failure> {
    let (_, text) = call(address, "GET", "/metrics", "")?;
    let samples = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = rest.rsplit_once(' ')?;
        let is_it = (labels.is_empty() || labels.starts_with('{')) && labels.contains(label);
        if is_it { value.parse::<f64>().ok() } else { None }
    });
    Ok(samples.reduce(|left, right| left + right))
}
