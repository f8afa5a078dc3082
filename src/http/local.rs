//! Whether a request without a key comes from this machine, and not from a web page or through a proxy.

use std::net::IpAddr;

use axum::http::{HeaderMap, Uri, header};

/// Set by proxies.
const FORWARDED: [&str; 3] = ["forwarded", "x-forwarded-for", "x-real-ip"];

/// A browser on this machine lets pages from anywhere send requests here. It names the page's origin, and the name that it
/// looked up, which a page's author can point at this machine: both must be this machine's own.
pub fn is(headers: &HeaderMap) -> bool {
    let own = |name| headers.get_all(name).iter().all(|value| value.to_str().is_ok_and(is_own_address));
    let forwarded = FORWARDED.iter().any(|&name| headers.contains_key(name));
    own(header::HOST) && own(header::ORIGIN) && !forwarded
}

/// Of an authority or an origin.
fn is_own_address(text: &str) -> bool {
    let Ok(uri) = text.parse::<Uri>() else { return false };
    let host = uri.host().unwrap_or("").trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(fields: &[(&'static str, &str)]) -> bool {
        is(&fields.iter().map(|&(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect())
    }

    #[test]
    fn this_machine_is_known_by_its_own_names_only() {
        for host in ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "127.1.2.3", "[::1]:8080"] {
            assert!(request(&[("host", host)]), "{host}");
        }
        assert!(request(&[("host", "127.0.0.1:80"), ("origin", "http://localhost:3000")]));
        for host in ["evil.example", "localhost.evil.example", "10.0.0.1", "127.0.0.1.nip.io:80", "", "[::2]"] {
            assert!(!request(&[("host", host)]), "{host}");
        }
        for origin in ["https://evil.example", "null", "http://localhost@evil.example"] {
            assert!(!request(&[("host", "localhost"), ("origin", origin)]), "{origin}");
        }
        assert!(!request(&[("host", "localhost"), ("x-forwarded-for", "1.2.3.4")]));
    }
}
