//! Which addresses a worker may have, so that a registered URL cannot turn the gateway into a way to places that its
//! callers must not reach (server-side request forgery).
//!
//! The rules are asked twice: when a URL is registered, for a clear answer, and whenever a connection is opened, on
//! the very addresses it is opened to, because a name may mean something else by then.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use smg_fleet::WorkerUrl;
use tokio::time::timeout;

use crate::resolve::Resolver;

/// How long a name may take to resolve when a URL is checked.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Addresses that may and may not be connected to. `deny` beats `allow`, and `allow` beats everything else.
///
/// An address on neither list that is link-local, a cloud's metadata service, multicast, broadcast, unspecified or
/// reserved is always refused; what becomes of the others is said by `unlisted`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UrlRules {
    /// Networks that may be used whatever they are.
    pub allow: Vec<Network>,
    /// Networks that may not be used.
    pub deny: Vec<Network>,
    /// What holds for addresses on neither list.
    pub unlisted: Unlisted,
}

/// What holds for an address on no list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unlisted {
    /// It may be used. The default, because workers mostly have private addresses.
    #[default]
    Any,
    /// It may be used if it is neither loopback nor private.
    Public,
    /// It may not be used.
    Nothing,
}

/// Why an address or a URL is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefusedUrl {
    /// The address may not be used.
    #[error("the worker's address {address} is {reason}")]
    Address {
        /// The address, as the name resolved.
        address: IpAddr,
        /// Which rule.
        reason: Reason,
    },
    /// The name means nothing.
    #[error("the worker's host name does not resolve")]
    Unresolvable,
}

/// Why an address is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// On the deny list.
    Denied,
    /// On no list, and only listed ones may be used.
    NotAllowed,
    /// Private or loopback, where only public ones may be used.
    Private,
    /// Of the link only.
    LinkLocal,
    /// Where clouds tell instances their secrets.
    Metadata,
    /// No single host: unspecified, multicast, broadcast or reserved.
    NoHost,
}

impl Reason {
    /// The words in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "denied by the url rules",
            Self::NotAllowed => "not among those the url rules allow",
            Self::Private => "private, and the url rules allow only public ones",
            Self::LinkLocal => "link-local",
            Self::Metadata => "a cloud's metadata service",
            Self::NoHost => "no address of a host",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl UrlRules {
    /// Whether a connection to `address` may be opened.
    pub fn admit(&self, address: IpAddr) -> Result<(), RefusedUrl> {
        match self.reason_against(address) {
            None => Ok(()),
            Some(reason) => Err(RefusedUrl::Address { address, reason }),
        }
    }

    /// Whether a worker may be at `url` now: every address its name resolves to must be allowed.
    pub async fn check(&self, url: &WorkerUrl) -> Result<(), RefusedUrl> {
        self.check_with(url, &Resolver::System).await
    }

    pub(crate) async fn check_with(&self, url: &WorkerUrl, resolver: &Resolver) -> Result<(), RefusedUrl> {
        if let Some(address) = url.address() {
            return self.admit(address);
        }
        let resolved = timeout(RESOLVE_TIMEOUT, resolver.resolve(url.host(), url.port())).await;
        let addresses = resolved.ok().and_then(Result::ok).unwrap_or_default();
        if addresses.is_empty() {
            return Err(RefusedUrl::Unresolvable);
        }
        addresses.iter().try_for_each(|address| self.admit(address.ip()))
    }

    fn reason_against(&self, address: IpAddr) -> Option<Reason> {
        // Both spellings of an address that embeds another are looked up, so that neither gets around a list.
        let meant = embedded(address);
        let listed = |networks: &[Network]| networks.iter().any(|net| net.contains(meant) || net.contains(address));
        if listed(&self.deny) {
            return Some(Reason::Denied);
        }
        if listed(&self.allow) {
            return None;
        }
        always_refused(meant).or_else(|| match self.unlisted {
            Unlisted::Any => None,
            Unlisted::Public => is_private(meant).then_some(Reason::Private),
            Unlisted::Nothing => Some(Reason::NotAllowed),
        })
    }
}

/// The IPv4 address that an IPv6 address stands for: mapped (RFC 4291 §2.5.5.2), compatible (§2.5.5.1), translated by
/// NAT64 (RFC 6052 §2.1), or tunnelled by 6to4 (RFC 3056 §2).
fn embedded(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else {
        return address;
    };
    let [a, b, c, d, e, f, g, h] = v6.segments();
    let v4 = |high: u16, low: u16| {
        let ([w, x], [y, z]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(w, x, y, z))
    };
    match [a, b, c, d, e, f] {
        [0, 0, 0, 0, 0, 0xffff] | [0x64, 0xff9b, 0, 0, 0, 0] => v4(g, h),
        [0, 0, 0, 0, 0, 0] if g != 0 => v4(g, h),
        [0x2002, ..] => v4(b, c),
        _ => address,
    }
}

/// Metadata services that are not link-local: Alibaba, Oracle, Azure's wire server, and AWS and Google over IPv6.
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192), Ipv4Addr::new(168, 63, 129, 16)];
const METADATA_V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

fn always_refused(address: IpAddr) -> Option<Reason> {
    let (metadata, link_local, no_host) = match address {
        IpAddr::V4(v4) => {
            // 0/8 is "this network", 240/4 is reserved and holds the broadcast address (RFC 6890).
            let no_host = v4.octets()[0] == 0 || v4.is_multicast() || v4.octets()[0] >= 240;
            (METADATA_V4.contains(&v4), v4.is_link_local(), no_host)
        }
        IpAddr::V6(v6) => {
            (METADATA_V6.contains(&v6), v6.is_unicast_link_local(), v6.is_unspecified() || v6.is_multicast())
        }
    };
    let reasons = [(metadata, Reason::Metadata), (link_local, Reason::LinkLocal), (no_host, Reason::NoHost)];
    reasons.into_iter().find_map(|(holds, reason)| holds.then_some(reason))
}

fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            // 100.64/10 is shared address space (RFC 6598), 198.18/15 is for benchmarks (RFC 2544).
            let [a, b, ..] = v4.octets();
            let shared = a == 100 && (64..128).contains(&b);
            let benchmark = a == 198 && (18..20).contains(&b);
            v4.is_private() || v4.is_loopback() || shared || benchmark
        }
        // Only 2000::/3 is given out for the world (RFC 3587 §3). Beside it are loopback, the addresses of sites, and those by
        // which a site's own translator leads to its IPv4 addresses (RFC 8215).
        IpAddr::V6(v6) => v6.segments()[0] >> 13 != 1,
    }
}

/// A network in CIDR notation; a bare address is a network of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    base: IpAddr,
    prefix: u8,
}

/// The text is not a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a network is an address with an optional prefix length, such as 10.0.0.0/8, 192.168.1.7 or fd00::/8")]
pub struct NotANetwork;

impl Network {
    /// Whether `address` lies inside.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                (base.to_bits() ^ address.to_bits()) & mask == 0
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                (base.to_bits() ^ address.to_bits()) & mask == 0
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let (base, prefix) = match text.split_once('/') {
            Some((base, prefix)) => (base, Some(prefix)),
            None => (text, None),
        };
        let base: IpAddr = base.parse().map_err(|_| NotANetwork)?;
        let longest = if base.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok(),
            Some(_) => None,
            None => Some(longest),
        };
        let prefix = prefix.filter(|prefix| *prefix <= longest).ok_or(NotANetwork)?;
        Ok(Self { base, prefix })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(texts: &[&str]) -> Vec<Network> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn reason(rules: &UrlRules, address: &str) -> Option<Reason> {
        match rules.admit(address.parse().unwrap()) {
            Ok(()) => None,
            Err(RefusedUrl::Address { reason, .. }) => Some(reason),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn addresses_that_are_never_workers_are_refused_in_every_spelling() {
        let rules = UrlRules::default();
        let check = |address, expected| assert_eq!(reason(&rules, address), expected, "{address}");
        check("10.1.2.3", None);
        check("127.0.0.1", None);
        check("::1", None);
        check("fd12::7", None);
        check("93.184.216.34", None);
        check("2606:2800:220:1::1", None);
        check("169.254.169.254", Some(Reason::LinkLocal));
        check("169.254.0.1", Some(Reason::LinkLocal));
        check("fe80::1", Some(Reason::LinkLocal));
        check("febf::1", Some(Reason::LinkLocal));
        check("fd00:ec2::254", Some(Reason::Metadata));
        check("fd20:ce::254", Some(Reason::Metadata));
        check("100.100.100.200", Some(Reason::Metadata));
        check("168.63.129.16", Some(Reason::Metadata));
        check("0.0.0.0", Some(Reason::NoHost));
        check("0.1.2.3", Some(Reason::NoHost));
        check("224.0.0.1", Some(Reason::NoHost));
        check("255.255.255.255", Some(Reason::NoHost));
        check("::", Some(Reason::NoHost));
        check("ff02::1", Some(Reason::NoHost));
        check("::ffff:169.254.169.254", Some(Reason::LinkLocal));
        check("::169.254.169.254", Some(Reason::LinkLocal));
        check("64:ff9b::a9fe:a9fe", Some(Reason::LinkLocal));
        check("2002:a9fe:a9fe::1", Some(Reason::LinkLocal));
        check("::ffff:0.0.0.0", Some(Reason::NoHost));
        check("::ffff:10.0.0.1", None);
    }

    #[test]
    fn lists_decide_before_anything_else_and_deny_decides_first() {
        let public = UrlRules { unlisted: Unlisted::Public, ..UrlRules::default() };
        let of_four = ["10.0.0.1", "127.0.0.1", "192.168.0.1", "100.64.0.1", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1"];
        let of_six = ["::1", "::2", "fd12::1", "fec0::1", "64:ff9b:1::10.0.0.1", "4000::1"];
        for private in of_four.into_iter().chain(of_six) {
            assert_eq!(reason(&public, private), Some(Reason::Private), "{private}");
        }
        for address in ["1.1.1.1", "2606:2800:220:1::1", "3fff::1", "64:ff9b::1.1.1.1"] {
            assert_eq!(reason(&public, address), None, "{address}");
        }

        let listed = UrlRules {
            allow: networks(&["10.1.0.0/16", "169.254.7.7", "fd00::/8"]),
            deny: networks(&["10.1.2.0/24"]),
            unlisted: Unlisted::Nothing,
        };
        let check = |address, expected| assert_eq!(reason(&listed, address), expected, "{address}");
        check("10.1.1.1", None);
        check("::ffff:10.1.1.1", None);
        check("10.1.2.1", Some(Reason::Denied));
        check("::ffff:10.1.2.1", Some(Reason::Denied));
        check("169.254.7.7", None);
        check("169.254.7.8", Some(Reason::LinkLocal));
        check("fd00:ec2::254", None);
        check("1.1.1.1", Some(Reason::NotAllowed));
    }

    #[test]
    fn networks_read_and_print() {
        let check = |text: &str, expected: Option<&str>| {
            let read = text.parse::<Network>().ok().map(|network| network.to_string());
            assert_eq!(read.as_deref(), expected, "{text}");
        };
        check("10.0.0.0/8", Some("10.0.0.0/8"));
        check("10.0.0.7", Some("10.0.0.7/32"));
        check("fd00::/8", Some("fd00::/8"));
        check("::1", Some("::1/128"));
        check("0.0.0.0/0", Some("0.0.0.0/0"));
        for bad in ["", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/+8", "10.0.0/8", "a/8", "10.0.0.0/8/8"] {
            check(bad, None);
        }
        let all: Network = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("255.1.2.3".parse().unwrap()));
        assert!(!all.contains("::1".parse().unwrap()));
    }

    #[tokio::test]
    async fn one_bad_address_of_a_name_refuses_the_url() {
        let resolver = Resolver::table([
            ("good.test", vec!["10.0.0.1", "10.0.0.2"]),
            ("mixed.test", vec!["10.0.0.1", "169.254.169.254"]),
        ]);
        let rules = UrlRules::default();
        let check = async |url: &str| rules.check_with(&url.parse().unwrap(), &resolver).await;
        assert_eq!(check("http://good.test:8000").await, Ok(()));
        assert_eq!(check("http://unknown.test:8000").await, Err(RefusedUrl::Unresolvable));
        let address = "169.254.169.254".parse().unwrap();
        let expected = RefusedUrl::Address { address, reason: Reason::LinkLocal };
        assert_eq!(check("http://mixed.test:8000").await, Err(expected.clone()));
        assert_eq!(check("http://169.254.169.254/latest").await, Err(expected));
    }
}
