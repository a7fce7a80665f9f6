//! The HTTP request that turns a connection into a WebSocket (RFC 6455 4.2), read strictly and within a bound.

use aws_lc_rs::digest;
use base64::{Engine as _, prelude::BASE64_STANDARD};

use crate::metrics::TransportFault;

/// The path of IoT Hub's WebSocket endpoint; compared without regard to case, as HTTP front ends do.
pub const PATH: &str = "/$iothub/websocket";
/// The only subprotocol served [MQTT-6.0.0-3].
pub const SUBPROTOCOL: &str = "mqtt";
/// A longer request is refused.
pub const REQUEST_BYTES_MAX: usize = 8 * 1024;
const HEADERS_MAX: usize = 64;
/// RFC 6455 1.3.
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What a request so far amounts to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upgrade {
    /// No empty line yet.
    Incomplete,
    /// To be answered by [`switching`].
    Accepted {
        /// Bytes of the request; frames may follow.
        used: usize,
        /// Value of `Sec-WebSocket-Accept`.
        accept: String,
    },
    /// To be answered by [`answer`].
    Refused(Refused),
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Not HTTP/1.1 in form, or too long.
    Malformed,
    /// Not GET.
    Method,
    /// Another path.
    Path,
    /// Does not ask for a WebSocket.
    NotAnUpgrade,
    /// Another version than 13.
    Version,
    /// No `Sec-WebSocket-Key` of 16 bytes.
    Key,
    /// `mqtt` is not among the subprotocols.
    Subprotocol,
}

impl Refused {
    /// The metric label.
    pub fn fault(self) -> TransportFault {
        match self {
            Self::Path => TransportFault::WebSocketPath,
            Self::Subprotocol => TransportFault::WebSocketSubprotocol,
            _ => TransportFault::WebSocketRequest,
        }
    }

    /// Status line, extra headers, and a text that says what is right.
    fn parts(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Malformed => ("400 Bad Request", "", "expected an HTTP/1.1 request of at most 8 KiB"),
            Self::Method => ("405 Method Not Allowed", "Allow: GET\r\n", "expected GET"),
            Self::Path => ("404 Not Found", "", "MQTT over WebSocket is served at /$iothub/websocket"),
            Self::NotAnUpgrade => (
                "426 Upgrade Required",
                "Upgrade: websocket\r\n",
                "expected Connection: Upgrade and Upgrade: websocket",
            ),
            Self::Version => (
                "426 Upgrade Required",
                "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
                "expected Sec-WebSocket-Version: 13",
            ),
            Self::Key => ("400 Bad Request", "", "expected Sec-WebSocket-Key: 16 bytes in base64"),
            Self::Subprotocol => ("400 Bad Request", "", "expected Sec-WebSocket-Protocol: mqtt"),
        }
    }
}

/// The answer to a request that is refused; the connection closes after it.
pub fn answer(refused: Refused) -> Vec<u8> {
    let (status, headers, text) = refused.parts();
    format!(
        "HTTP/1.1 {status}\r\n{headers}Connection: close\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{text}\n",
        text.len() + 1
    )
    .into_bytes()
}

/// The answer to a request that is accepted.
pub fn switching(accept: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n"
    )
    .into_bytes()
}

/// Looks at everything received so far.
pub fn parse(input: &[u8]) -> Upgrade {
    let Some(end) = input.windows(4).take(REQUEST_BYTES_MAX).position(|four| four == b"\r\n\r\n") else {
        let hopeless = input.len() >= REQUEST_BYTES_MAX || !begins_like_http(input);
        return if hopeless { Upgrade::Refused(Refused::Malformed) } else { Upgrade::Incomplete };
    };
    match std::str::from_utf8(&input[..end]).map_err(|_| Refused::Malformed).and_then(check) {
        Ok(accept) => Upgrade::Accepted { used: end + 4, accept },
        Err(refused) => Upgrade::Refused(refused),
    }
}

/// Bytes that cannot become a request line need not wait for its end.
fn begins_like_http(input: &[u8]) -> bool {
    let method = input.split(|byte| *byte == b' ').next().unwrap_or_default();
    method.len() <= 16 && method.iter().all(u8::is_ascii_uppercase)
}

/// Checks a whole request; gives `Sec-WebSocket-Accept`.
fn check(request: &str) -> Result<String, Refused> {
    let mut lines = request.split("\r\n");
    check_request_line(lines.next().unwrap_or_default())?;
    let headers = Headers::parse(lines)?;
    if !headers.has_token("connection", "upgrade") || !headers.has_token("upgrade", "websocket") {
        return Err(Refused::NotAnUpgrade);
    }
    if headers.only("sec-websocket-version") != Some("13") {
        return Err(Refused::Version);
    }
    let key = headers.only("sec-websocket-key").ok_or(Refused::Key)?;
    if BASE64_STANDARD.decode(key).map_or(0, |bytes| bytes.len()) != 16 {
        return Err(Refused::Key);
    }
    if !headers.has_token("sec-websocket-protocol", SUBPROTOCOL) {
        return Err(Refused::Subprotocol);
    }
    Ok(accept_of(key))
}

/// RFC 6455 4.2.2 point 5.4.
fn accept_of(key: &str) -> String {
    let mut sha1 = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    sha1.update(key.as_bytes());
    sha1.update(ACCEPT_GUID);
    BASE64_STANDARD.encode(sha1.finish())
}

fn check_request_line(line: &str) -> Result<(), Refused> {
    let mut words = line.split(' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    if version != Some("HTTP/1.1") || words.next().is_some() {
        return Err(Refused::Malformed);
    }
    if method != Some("GET") {
        return Err(Refused::Method);
    }
    let path = path_of(target.unwrap_or_default());
    if path.eq_ignore_ascii_case(PATH) || path.eq_ignore_ascii_case("/%24iothub/websocket") {
        Ok(())
    } else {
        Err(Refused::Path)
    }
}

/// The path of a target in origin form or absolute form, without its query.
fn path_of(target: &str) -> &str {
    let target = match target.split_once("://") {
        Some((_, rest)) if !target.starts_with('/') => rest.find('/').map_or("/", |at| &rest[at..]),
        _ => target,
    };
    target.split_once('?').map_or(target, |(path, _)| path)
}

struct Headers<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Headers<'a> {
    fn parse(lines: impl Iterator<Item = &'a str>) -> Result<Self, Refused> {
        let mut headers = Vec::new();
        for line in lines {
            let (name, value) = line.split_once(':').ok_or(Refused::Malformed)?;
            let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            if name.is_empty() || !name.bytes().all(is_token) || headers.len() == HEADERS_MAX {
                return Err(Refused::Malformed);
            }
            headers.push((name, value.trim_matches([' ', '\t'])));
        }
        Ok(Self(headers))
    }

    fn all(&self, name: &str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
    }

    /// The value of a header that must not occur twice.
    fn only(&self, name: &str) -> Option<&'a str> {
        let mut all = self.all(name);
        let first = all.next();
        if all.next().is_some() { None } else { first }
    }

    /// Whether the comma-separated list `name` holds `token`, without regard to case.
    fn has_token(&self, name: &str, token: &str) -> bool {
        self.all(name).flat_map(|value| value.split(',')).any(|have| have.trim().eq_ignore_ascii_case(token))
    }
}

#[cfg(test)]
mod tests {
    use super::{Refused, Upgrade, parse};

    const GOOD: &str = "GET /$iothub/websocket HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\
                        Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: x, mqtt\r\n\r\n";

    fn check(change: (&str, &str), expected: Option<Refused>) {
        let request = GOOD.replacen(change.0, change.1, 1);
        match (parse(request.as_bytes()), expected) {
            (Upgrade::Accepted { used, accept }, None) => {
                assert_eq!((used, accept.as_str()), (request.len(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
            }
            (got, expected) => assert_eq!(got, Upgrade::Refused(expected.expect("accepted")), "{request}"),
        }
    }

    #[test]
    fn a_request_is_judged_by_its_path_headers_and_subprotocol() {
        let path = "/$iothub/websocket";
        check(("", ""), None);
        check((path, "/$iothub/websocket?iothub-no-client-cert=true"), None);
        check((path, "wss://gw.example:443/$iothub/websocket?a=b"), None);
        check((path, "/$IoTHub/WebSocket"), None);
        check((path, "/%24iothub/websocket"), None);
        check((path, "/"), Some(Refused::Path));
        check((path, "/mqtt"), Some(Refused::Path));
        check((path, "wss://gw.example"), Some(Refused::Path));
        check(("GET", "POST"), Some(Refused::Method));
        check(("HTTP/1.1", "HTTP/1.0"), Some(Refused::Malformed));
        check(("HTTP/1.1", "HTTP/1.1 x"), Some(Refused::Malformed));
        check(("x, mqtt", "AMQPWSB10"), Some(Refused::Subprotocol));
        check(("\r\nSec-WebSocket-Protocol: x, mqtt", ""), Some(Refused::Subprotocol));
        check(("Version: 13", "Version: 8"), Some(Refused::Version));
        check(("Upgrade: websocket\r\n", ""), Some(Refused::NotAnUpgrade));
        check(("keep-alive, Upgrade", "keep-alive"), Some(Refused::NotAnUpgrade));
        check(("dGhlIHNhbXBsZSBub25jZQ==", "dGhl"), Some(Refused::Key));
        check(("Host: h", "Host : h"), Some(Refused::Malformed));
        check(("Host: h", "Host"), Some(Refused::Malformed));
    }

    #[test]
    fn a_request_is_incomplete_until_its_empty_line() {
        for cut in 1..GOOD.len() {
            assert_eq!(parse(&GOOD.as_bytes()[..cut]), Upgrade::Incomplete, "cut at {cut}");
        }
    }

    #[test]
    fn what_cannot_become_a_request_is_refused_at_once() {
        for input in [&b"\x10\x1a\0\x04MQTT"[..], b"get / HTTP/1.1", &[b'A'; 17]] {
            assert_eq!(parse(input), Upgrade::Refused(Refused::Malformed));
        }
        let endless = [b"GET /".as_slice(), &[b'a'; 9000]].concat();
        assert_eq!(parse(&endless), Upgrade::Refused(Refused::Malformed));
    }
}
