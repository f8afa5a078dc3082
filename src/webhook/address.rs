//! Where deliveries may go: nowhere that only this server can reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Longest URL of a webhook, in bytes.
const MAX_URL: usize = 2000;

/// Checks a URL as far as that can be done without asking a name server; `private`: whether it may lead anywhere. The
/// error is a sentence.
pub fn check(text: &str, private: bool) -> Result<Url, String> {
    if text.len() > MAX_URL {
        return Err(format!("it may have at most {MAX_URL} bytes"));
    }
    let url = Url::parse(text).map_err(|e| format!("it is not a URL: {e}"))?;
    match url.scheme() {
        "https" => {}
        "http" if private => {}
        other => return Err(format!("it must begin with https://, not {other}://")),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("it may not hold a name or a password: the signature shows who sends".into());
    }
    if url.fragment().is_some() {
        return Err("it may not have a fragment (#…)".into());
    }
    // A literal address is never looked up, so it is checked here. Odd spellings (0x7f.1) have been made plain by parsing.
    let host = url.host_str().unwrap_or("").trim_start_matches('[').trim_end_matches(']');
    match host.parse() {
        Ok(address) if !private && !is_public(address) => Err(refusal(host)),
        _ => Ok(url),
    }
}

fn refusal(host: &str) -> String {
    format!("{host} is not an address of the public internet")
}

/// Looks names up for deliveries, and gives out nothing if any address found is not public. What it gives out is what is
/// connected to: a name that means something else a moment later gains nothing.
pub struct Guard {
    pub private: bool,
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let private = self.private;
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            if !private && found.iter().any(|address| !is_public(address.ip())) {
                return Err(refusal(&host).into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Whether an address belongs to the public internet: not to this machine, a private network, a cloud's metadata service
/// or a range with a special meaning.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let special = match address.octets() {
        [0 | 127, ..] => true,
        [100, b, ..] if b & 0xc0 == 64 => true,
        [192, 0, 0, _] | [192, 88, 99, _] => true,
        [198, 18 | 19, ..] => true,
        // Multicast, and what is reserved above it.
        [224..=255, ..] => true,
        // Azure's machines reach their host here.
        [168, 63, 129, 16] => true,
        _ => false,
    };
    !special && !address.is_private() && !address.is_link_local() && !address.is_documentation()
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    match address.segments() {
        // NAT64 leads to the IPv4 address in it.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => is_public_v4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low))),
        // Teredo and other special uses, documentation, 6to4.
        [0x2001, 0..0x200, ..] | [0x2001, 0xdb8, ..] | [0x2002, ..] | [0x3fff, 0..0x1000, ..] => false,
        // All else that is handed out; loopback, mapped IPv4, ULA and link-local are not among it.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_public_internet_pass() {
        let inside = [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "127.255.0.1",
            "169.254.169.254",
            "168.63.129.16",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.9",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "::7f00:1",
            "64:ff9b::a00:1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "100::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
        ];
        for text in inside {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
        for text in
            ["1.1.1.1", "8.8.8.8", "100.128.0.1", "172.32.0.1", "192.0.1.1", "2606:4700::1111", "64:ff9b::808:808"]
        {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn urls_that_lead_inside_are_refused_however_they_are_written() {
        let urls = [
            "http://example.com/",
            "ftp://example.com",
            "https://me:secret@example.com/",
            "https://example.com/#a",
            "nonsense",
            "https://127.0.0.1/",
            "https://0x7f.1/",
            "https://2130706433/",
            "https://017700000001/",
            "https://[::1]/",
            "https://[::ffff:169.254.169.254]/",
            "https://169.254.169.254/latest/meta-data/",
            "https://①⑥⑨.254.169.254/",
        ];
        for url in urls {
            assert!(check(url, false).is_err(), "{url}");
        }
        assert!(check(&format!("https://example.com/{}", "x".repeat(2000)), false).is_err());
        for url in ["https://example.com/hook?token=1", "https://1.1.1.1:8443/", "https://[2606:4700::1111]/"] {
            assert!(check(url, false).is_ok(), "{url}");
        }
        assert!(check("http://127.0.0.1:9/", true).is_ok());
    }

    #[tokio::test]
    async fn a_name_that_means_this_machine_is_not_connected_to() {
        let look = async |private| Guard { private }.resolve("localhost".parse().unwrap()).await.is_ok();
        assert!(!look(false).await);
        assert!(look(true).await);
    }
}
