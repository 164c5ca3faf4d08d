//! A provider as tokens and operators see it.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use aws_lc_rs::hmac;
use serde_json::{Value, json};
use smg_base::{Clock, ManualClock, TenantId};
use smg_runtime::metrics::Registrar;

use crate::{
    authenticator::{Authenticator, Origin},
    claims::{ClaimPath, ClaimRules},
    denied::Denied,
    key::KeyRecord,
    principal::{Role, Via},
    provider::{Provider, ProviderConfig},
    testing::{Answers, DISCOVERY, ISSUER, KEYS, Signer, Site, base64},
    token::TokenFault,
};

/// Made once: primes take a while.
static RSA: LazyLock<Signer> = LazyLock::new(|| Signer::rsa("rsa"));
static MAIN: LazyLock<Signer> = LazyLock::new(|| Signer::p256("main"));
static EC: LazyLock<Signer> = LazyLock::new(|| Signer::p256("ec"));

const LEEWAY: u64 = 30;
const REFRESH: Duration = Duration::from_secs(3_600);

/// A provider, what it publishes, and the time.
struct World {
    site: Arc<Site>,
    clock: Arc<ManualClock>,
    registrar: Registrar,
    provider: Arc<Provider>,
}

fn config() -> ProviderConfig {
    ProviderConfig {
        issuer: ISSUER.to_owned(),
        audiences: vec!["smg".to_owned(), "smg-too".to_owned()],
        keys_url: None,
        leeway: Duration::from_secs(LEEWAY),
        refresh_every: REFRESH,
        keys_kept_for: 10 * REFRESH,
        claims: ClaimRules {
            tenant: Some(ClaimPath::new("org")),
            tenant_without_claim: TenantId::from("default"),
            roles: ClaimPath::new("roles"),
            role_of: [("ops".to_owned(), Role::Admin)].into(),
        },
    }
}

async fn world(signers: &[&Signer]) -> World {
    let (site, clock, registrar) = (Site::with(signers), Arc::new(ManualClock::default()), Registrar::new());
    clock.advance(Duration::from_secs(1_000_000));
    let opened = Provider::open(config(), site.clone(), clock.clone(), &registrar).await;
    let provider = Arc::new(opened.unwrap_or_else(|error| panic!("{error}")));
    World { site, clock, registrar, provider }
}

impl World {
    fn now(&self) -> u64 {
        self.clock.unix_ms() / 1_000
    }

    /// What a good token says.
    fn claims(&self) -> Value {
        let now = self.now();
        json!({ "iss": ISSUER, "aud": "smg", "sub": "ada", "org": "acme", "iat": now, "nbf": now, "exp": now + 300 })
    }

    fn claims_with(&self, changed: &Value) -> Value {
        let mut claims = self.claims();
        for (name, value) in changed.as_object().expect("it is an object") {
            claims[name] = value.clone();
        }
        claims
    }

    fn claims_without(&self, name: &str) -> Value {
        let mut claims = self.claims();
        claims.as_object_mut().expect("it is an object").remove(name);
        claims
    }

    async fn denied(&self, token: &str) -> Option<Denied> {
        self.provider.identify(token).await.err()
    }

    async fn check(&self, what: &str, token: &str, expected: Option<TokenFault>) {
        assert_eq!(self.denied(token).await, expected.map(Denied::Token), "{what}");
    }

    /// Lets time pass, for whoever reads a clock and whoever sleeps.
    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
        tokio::time::advance(time).await;
    }

    /// Runs a test beside the task that keeps keys fresh.
    async fn kept_fresh(&self, test: impl Future<Output = ()>) {
        tokio::select! {
            () = self.provider.keep_fresh() => {}
            () = test => {}
        }
    }

    fn fetches(&self, outcome: &str) -> bool {
        self.registrar.encode().contains(&format!("smg_auth_provider_fetches_total{{outcome=\"{outcome}\"}}"))
    }
}

#[tokio::test]
async fn a_token_in_each_algorithm_with_a_public_key_is_believed() {
    let (p384, edwards) = (Signer::p384("p384"), Signer::ed25519("edwards"));
    let world = world(&[&RSA, &EC, &p384, &edwards]).await;
    let check = async |signer: &Signer, algorithm: &str| {
        let who = world.provider.identify(&signer.token_in(algorithm, &world.claims())).await;
        let who = who.unwrap_or_else(|denied| panic!("{algorithm}: {denied:?}"));
        let told = (who.tenant.as_str(), &*who.name, who.role, who.via, who.key.as_ref());
        assert_eq!(told, ("acme", "ada", Role::Caller, Via::Token, None), "{algorithm}");
    };
    for algorithm in ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"] {
        check(&RSA, algorithm).await;
    }
    check(&EC, "ES256").await;
    check(&p384, "ES384").await;
    check(&edwards, "EdDSA").await;
    let admin = RSA.token(&world.claims_with(&json!({ "roles": ["ops"] })));
    assert_eq!(world.provider.identify(&admin).await.map(|who| who.role), Ok(Role::Admin));
}

#[tokio::test(start_paused = true)]
async fn a_token_that_nobody_or_somebody_else_signed_is_refused() {
    use TokenFault::{Algorithm, Malformed, Signature, UnknownKey};

    let world = world(&[&RSA, &EC]).await;
    let claims = world.claims();
    let body = base64(claims.to_string().as_bytes());
    let head = |head: Value| base64(head.to_string().as_bytes());
    for none in ["none", "None", "NONE", "nOnE", ""] {
        let head = head(json!({ "alg": none, "typ": "JWT", "kid": "rsa" }));
        world.check(none, &format!("{head}.{body}."), Some(Malformed)).await;
        world.check(none, &format!("{head}.{body}.{}", base64(&[0; 256])), Some(Malformed)).await;
    }
    let modulus = RSA.jwk()["n"].as_str().expect("it has one").to_owned();
    for (algorithm, of_hash) in
        [("HS256", hmac::HMAC_SHA256), ("HS384", hmac::HMAC_SHA384), ("HS512", hmac::HMAC_SHA512)]
    {
        for secret in [modulus.as_bytes(), RSA.jwk().to_string().as_bytes(), b""] {
            let message = format!("{}.{body}", head(json!({ "alg": algorithm, "kid": "rsa" })));
            let tag = hmac::sign(&hmac::Key::new(of_hash, secret), message.as_bytes());
            let token = format!("{message}.{}", base64(tag.as_ref()));
            world.check("a public key as the secret", &token, Some(Algorithm)).await;
        }
    }
    let good = RSA.token(&claims);
    let parts: Vec<&str> = good.split('.').collect();
    let other = RSA.token(&world.claims_with(&json!({ "org": "other" })));
    let swapped = format!("{}.{}.{}", parts[0], other.split('.').nth(1).unwrap_or_default(), parts[2]);
    world.check("the claims of another token", &swapped, Some(Signature)).await;
    world.check("no signature", &format!("{}.{}.", parts[0], parts[1]), Some(Signature)).await;
    world.check("half a signature", &good[..good.len() - 22], Some(Signature)).await;
    world.check("a key of somebody else's", &Signer::rsa("rsa").token(&claims), Some(Signature)).await;
    world
        .check(
            "in the name of another key",
            &RSA.token_with(&json!({ "alg": "RS256", "kid": "ec" }), &claims),
            Some(Algorithm),
        )
        .await;
    world
        .check(
            "an algorithm of another kind",
            &EC.token_with(&json!({ "alg": "RS256", "kid": "ec" }), &claims),
            Some(Algorithm),
        )
        .await;
    world
        .check("another curve", &EC.token_with(&json!({ "alg": "ES384", "kid": "ec" }), &claims), Some(Algorithm))
        .await;
    world.check("no name, several keys", &RSA.token_with(&json!({ "alg": "RS256" }), &claims), Some(UnknownKey)).await;
    world
        .check("an empty name", &RSA.token_with(&json!({ "alg": "RS256", "kid": "" }), &claims), Some(UnknownKey))
        .await;
    for kid in [json!(["rsa"]), json!(1), json!({ "kid": "rsa" })] {
        let token = RSA.token_with(&json!({ "alg": "RS256", "kid": kid }), &claims);
        world.check("a name that is no text", &token, Some(Malformed)).await;
    }
}

#[tokio::test]
async fn keys_that_a_token_brings_along_are_not_looked_at() {
    let world = world(&[&MAIN]).await;
    let stranger = Signer::p256("stranger");
    let brought = [
        json!({ "jwk": stranger.jwk() }),
        json!({ "jku": "https://evil.test/jwks" }),
        json!({ "x5u": "https://evil.test/chain" }),
        json!({ "x5c": [base64(b"a certificate")] }),
    ];
    let before = world.site.asked();
    for mut head in brought {
        head["alg"] = "ES256".into();
        head["kid"] = "main".into();
        let (own, foreign) = (MAIN.token_with(&head, &world.claims()), stranger.token_with(&head, &world.claims()));
        world.check("it is signed by the provider all the same", &own, None).await;
        world.check("it is signed by what it brings", &foreign, Some(TokenFault::Signature)).await;
    }
    assert_eq!(world.site.asked(), before);
}

#[tokio::test]
async fn heads_that_want_more_than_is_understood_are_refused() {
    use TokenFault::{Critical, Type};

    let world = world(&[&MAIN]).await;
    let check = async |head: Value, expected: Option<TokenFault>| {
        let mut whole = json!({ "alg": "ES256", "kid": "main" });
        for (name, value) in head.as_object().expect("it is an object") {
            whole[name] = value.clone();
        }
        world.check(&head.to_string(), &MAIN.token_with(&whole, &world.claims()), expected).await;
    };
    check(json!({}), None).await;
    check(json!({ "typ": "at+jwt" }), None).await;
    check(json!({ "typ": "application/at+JWT" }), None).await;
    check(json!({ "typ": "logout+jwt" }), Some(Type)).await;
    check(json!({ "typ": "dpop+jwt" }), Some(Type)).await;
    check(json!({ "typ": "" }), Some(Type)).await;
    let logout = world.claims_with(&json!({ "events": { "http://schemas.openid.net/event/backchannel-logout": {} } }));
    world.check("it tells of a logout", &MAIN.token(&logout), Some(Type)).await;
    check(json!({ "crit": ["exp"] }), Some(Critical)).await;
    check(json!({ "crit": [] }), Some(Critical)).await;
    check(json!({ "crit": ["b64"], "b64": false }), Some(Critical)).await;
    check(json!({ "crit": "exp" }), Some(TokenFault::Malformed)).await;
}

#[tokio::test]
async fn what_is_no_token_is_refused_without_a_look_at_keys() {
    let world = world(&[&MAIN]).await;
    let good = MAIN.token(&world.claims());
    let deep = format!("{{\"alg\":\"ES256\",\"x\":{}{}}}", "[".repeat(3_000), "]".repeat(3_000));
    let garbage = [
        String::new(),
        "..".to_owned(),
        "a.b.c".to_owned(),
        "ey.ey.ey".to_owned(),
        "eyJ.".to_owned(),
        "\u{0}.\u{0}.\u{0}".to_owned(),
        "eü.ö.ä".to_owned(),
        format!("{good}="),
        format!("{good}.{good}"),
        good.replace('.', ""),
        format!("{}.x", base64(b"{\"alg\":\"ES256\"}")),
        format!("{}.x.y", base64(b"null")),
        format!("{}.x.y", base64(b"[]")),
        format!("{}.x.y", base64(b"{\"alg\":\"ES256\",\"alg\":\"ES256\"}")),
        format!("{}.x.y", base64(deep.as_bytes())),
        MAIN.token(&world.claims_with(&json!({ "more": "x".repeat(16 << 10) }))),
    ];
    let before = world.site.asked();
    for token in garbage {
        let denied = world.denied(&token).await;
        let told = token.chars().take(60).collect::<String>();
        assert!(
            matches!(denied, Some(Denied::Token(TokenFault::Malformed | TokenFault::Signature))),
            "{told}: {denied:?}"
        );
    }
    for claims in [json!([]), json!("text"), json!(null), json!(1)] {
        world.check("claims that are no object", &MAIN.token(&claims), Some(TokenFault::Malformed)).await;
    }
    assert_eq!(world.site.asked(), before);
}

#[tokio::test]
async fn a_token_of_or_for_somebody_else_is_refused() {
    use TokenFault::{Audience, Issuer, Tenant};

    let world = world(&[&MAIN]).await;
    let check = async |changed: Value, expected: Option<TokenFault>| {
        world.check(&changed.to_string(), &MAIN.token(&world.claims_with(&changed)), expected).await;
    };
    for issuer in
        [json!("https://id.test/realm/"), json!("https://ID.test/realm"), json!(""), json!([ISSUER]), json!(null)]
    {
        check(json!({ "iss": issuer }), Some(Issuer)).await;
    }
    for audience in [
        json!("smg-"),
        json!("SMG"),
        json!(""),
        json!([]),
        json!(["other"]),
        json!(null),
        json!({ "smg": 1 }),
        json!([["smg"]]),
    ] {
        check(json!({ "aud": audience }), Some(Audience)).await;
    }
    check(json!({ "aud": "smg-too" }), None).await;
    check(json!({ "aud": ["other", "smg"] }), None).await;
    check(json!({ "aud": [1, null, "smg"] }), None).await;
    check(json!({ "org": "" }), Some(Tenant)).await;
    for (name, expected) in [("iss", Issuer), ("aud", Audience), ("org", Tenant)] {
        world.check(name, &MAIN.token(&world.claims_without(name)), Some(expected)).await;
    }
}

#[tokio::test]
async fn times_hold_within_what_clocks_may_be_apart() {
    use TokenFault::{Expired, Malformed, NotYet};

    let world = world(&[&MAIN]).await;
    let now = world.now();
    let check = async |changed: Value, expected: Option<TokenFault>| {
        world.check(&changed.to_string(), &MAIN.token(&world.claims_with(&changed)), expected).await;
    };
    check(json!({ "exp": now + 1 }), None).await;
    check(json!({ "exp": now - LEEWAY + 1 }), None).await;
    check(json!({ "exp": now - LEEWAY }), Some(Expired)).await;
    check(json!({ "exp": 0 }), Some(Expired)).await;
    check(json!({ "exp": null }), Some(Expired)).await;
    for name in ["nbf", "iat"] {
        check(json!({ name: now + LEEWAY }), None).await;
        check(json!({ name: now + LEEWAY + 1 }), Some(NotYet)).await;
        check(json!({ name: null }), None).await;
    }
    check(json!({ "exp": 300.5 + f64::from(u32::try_from(now).expect("it is small")) }), None).await;
    for odd in [json!("soon"), json!(-1), json!(1e300), json!([now + 10]), json!(u64::MAX), json!(true)] {
        for name in ["exp", "nbf", "iat"] {
            check(json!({ name: odd }), Some(Malformed)).await;
        }
    }
    world.check("no end", &MAIN.token(&world.claims_without("exp")), Some(Expired)).await;
}

#[tokio::test]
async fn a_provider_that_cannot_be_believed_or_asked_does_not_open() {
    let check = async |change: &dyn Fn(&Site), expected: &str| {
        let site = Site::with(&[&RSA]);
        change(&site);
        let opened = Provider::open(config(), site, Arc::new(ManualClock::default()), &Registrar::new()).await;
        let error = opened.map(|_| ()).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    };
    let described = |issuer: &str, keys: &str| json!({ "issuer": issuer, "jwks_uri": keys });
    check(&|site| site.remove(DISCOVERY), "openid-configuration cannot be had: it answers with status 404").await;
    check(&|site| site.remove(KEYS), "https://keys.test/jwks?v=1 cannot be had").await;
    check(&|site| site.put(DISCOVERY, described("https://evil.test", KEYS)), "another issuer").await;
    check(&|site| site.put(DISCOVERY, described("https://id.test/realm/", KEYS)), "another issuer").await;
    check(&|site| site.put(DISCOVERY, described(ISSUER, "http://keys.test/jwks")), "not behind https").await;
    check(&|site| site.put(DISCOVERY, described(ISSUER, "file:///etc/passwd")), "not behind https").await;
    for odd in [
        "https://id.test/\nERROR of the operator's",
        "https://id.test/\u{1b}[2J",
        &format!("https://id.test/{}", "x".repeat(2_048)),
    ] {
        check(&|site| site.put(DISCOVERY, described(ISSUER, odd)), "is no url").await;
    }
    check(&|site| site.put(DISCOVERY, "<html>"), "no JSON object").await;
    check(&|site| site.put(DISCOVERY, json!({ "issuer": ISSUER })), "no JSON object").await;
    check(&|site| site.put(DISCOVERY, format!("{}{{}}", " ".repeat(64 << 10))), "more than 65536 bytes").await;
    check(&|site| site.put(KEYS, format!("{}{{}}", " ".repeat(256 << 10))), "more than 262144 bytes").await;
    check(&|site| site.put(KEYS, json!({ "keys": vec![EC.jwk(); 65] })), "more than 64 keys").await;
    check(&|site| site.put(KEYS, json!({ "keys": [] })), "none of its keys").await;
    check(
        &|site| site.put(KEYS, json!({ "keys": [{ "kty": "oct", "k": "AAAA", "alg": "HS256" }] })),
        "none of its keys",
    )
    .await;
    check(&|site| site.put(KEYS, json!({ "keys": "many" })), "a list of keys").await;
    check(&|site| site.put(KEYS, "nothing"), "a list of keys").await;
}

#[tokio::test]
async fn keys_may_be_somewhere_that_nobody_is_asked_for() {
    let site = Site::with(&[&MAIN]);
    site.remove(DISCOVERY);
    let config = ProviderConfig { keys_url: Some(KEYS.to_owned()), ..config() };
    let opened = Provider::open(config, site.clone(), Arc::new(ManualClock::default()), &Registrar::new()).await;
    assert!(opened.is_ok());
    assert_eq!(site.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_one_key_of_a_provider_needs_no_name() {
    let (nameless, newer) = (Signer::p256("").nameless(), Signer::p256("").nameless());
    let world = world(&[&nameless]).await;
    world
        .kept_fresh(async {
            let claims = world.claims();
            world.check("no name", &nameless.token(&claims), None).await;
            let other = nameless.token_in("RS256", &claims);
            world.check("no name, another algorithm", &other, Some(TokenFault::Algorithm)).await;
            world.site.publish(&[&newer]);
            world.check("a newer key, no name", &newer.token(&claims), None).await;
            world.check("taken back", &nameless.token(&claims), Some(TokenFault::Signature)).await;
            assert_eq!(world.site.asked(), 4, "its description and its keys, twice");
            let named = newer.token_with(&json!({ "alg": "ES256", "kid": "x" }), &claims);
            world.check("a name", &named, Some(TokenFault::UnknownKey)).await;
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_new_key_is_fetched_once_for_all_who_come_with_it() {
    let world = world(&[&MAIN]).await;
    world
        .kept_fresh(async {
            let before = world.site.asked();
            world.site.publish(&[&MAIN, &EC]);
            world.site.set_answers(Answers::Later);
            let token = EC.token(&world.claims());
            let callers = (0..50).map(|_| world.denied(&token));
            let released = async {
                world.site.is_asked(before + 1).await;
                world.site.set_answers(Answers::Now);
            };
            let (denied, ()) = tokio::join!(futures_util::future::join_all(callers), released);
            assert!(denied.iter().all(Option::is_none), "{denied:?}");
            assert_eq!(world.site.asked(), before + 2, "its description and its keys, once");
            // Whoever signs with a key that is known waits for nothing.
            world.check("a known key", &MAIN.token(&world.claims()), None).await;
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_is_under_way_serves_who_comes_meanwhile() {
    let world = world(&[&MAIN]).await;
    world
        .kept_fresh(async {
            let before = world.site.asked();
            world.site.publish(&[&MAIN, &EC]);
            world.site.set_answers(Answers::Later);
            world.pass(REFRESH).await;
            world.site.is_asked(before + 1).await;
            let token = EC.token(&world.claims());
            let released = async { world.site.set_answers(Answers::Now) };
            let (denied, ()) = tokio::join!(world.denied(&token), released);
            assert_eq!(denied, None);
            // Nobody is left who would want another one.
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(world.site.asked(), before + 2);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn made_up_names_and_broken_tokens_do_not_become_requests() {
    let world = world(&[&MAIN, &EC]).await;
    world
        .kept_fresh(async {
            let before = world.site.asked();
            let claims = world.claims();
            let good = MAIN.token(&claims);
            let harmless = [
                good[..good.len() - 10].to_owned(),
                MAIN.token_with(&json!({ "alg": "ES256" }), &claims),
                MAIN.token_with(&json!({ "alg": "HS256", "kid": "unknown" }), &claims),
                MAIN.token(&world.claims_with(&json!({ "iss": "https://evil.test" }))),
                MAIN.token(&world.claims_with(&json!({ "exp": 1 }))),
            ];
            for token in &harmless {
                assert!(world.denied(token).await.is_some());
            }
            assert_eq!(world.site.asked(), before);
            for round in 1..=3 {
                for index in 0..20 {
                    let head = json!({ "alg": "ES256", "kid": format!("made-up-{round}-{index}") });
                    world.check("a made-up name", &MAIN.token_with(&head, &claims), Some(TokenFault::UnknownKey)).await;
                }
                assert_eq!(world.site.asked(), before + 2 * round, "one fetch within ten seconds");
                world.pass(Duration::from_secs(10)).await;
            }
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_hangs_holds_up_only_who_needs_it_and_not_for_long() {
    let world = world(&[&MAIN]).await;
    world
        .kept_fresh(async {
            world.site.set_answers(Answers::Later);
            let begun = tokio::time::Instant::now();
            world.check("a new key", &EC.token(&world.claims()), Some(TokenFault::UnknownKey)).await;
            assert!(begun.elapsed() <= Duration::from_secs(3), "{:?}", begun.elapsed());
            let begun = tokio::time::Instant::now();
            world.check("a known key", &MAIN.token(&world.claims()), None).await;
            assert_eq!(begun.elapsed(), Duration::ZERO);
            // Somebody who gave up has not stopped the fetch.
            world.site.publish(&[&MAIN, &EC]);
            world.site.set_answers(Answers::Now);
            world.site.is_asked(4).await;
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn known_keys_stay_while_the_provider_is_away_and_end_at_last() {
    let world = world(&[&MAIN]).await;
    world
        .kept_fresh(async {
            let before = world.site.asked();
            world.site.remove(DISCOVERY);
            world.pass(REFRESH).await;
            world.site.is_asked(before + 1).await;
            world.check("away", &MAIN.token(&world.claims()), None).await;
            assert!(world.fetches("failed"));
            // It is asked again sooner than it usually is.
            let failed = tokio::time::Instant::now();
            world.site.is_asked(before + 2).await;
            assert!(failed.elapsed() <= Duration::from_secs(30), "{:?}", failed.elapsed());
            world.clock.advance(9 * REFRESH + Duration::from_secs(1));
            assert_eq!(world.denied(&MAIN.token(&world.claims())).await, Some(Denied::Unavailable));
            world.site.put(DISCOVERY, json!({ "issuer": ISSUER, "jwks_uri": KEYS }));
            world.pass(Duration::from_secs(30)).await;
            world.site.is_asked(before + 4).await;
            tokio::task::yield_now().await;
            world.check("back", &MAIN.token(&world.claims()), None).await;
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_key_that_the_provider_took_back_is_believed_no_longer() {
    let world = world(&[&MAIN, &EC]).await;
    world
        .kept_fresh(async {
            world.site.publish(&[&EC]);
            let before = world.site.asked();
            world.pass(REFRESH).await;
            world.site.is_asked(before + 2).await;
            tokio::task::yield_now().await;
            world.check("taken back", &MAIN.token(&world.claims()), Some(TokenFault::UnknownKey)).await;
            world.check("still there", &EC.token(&world.claims()), None).await;
        })
        .await;
}

#[tokio::test]
async fn tokens_and_keys_are_known_side_by_side_and_never_taken_for_each_other() {
    let world = world(&[&MAIN]).await;
    let good = MAIN.token(&world.claims());
    let authenticator = Authenticator::new(world.clock.clone()).with_provider(world.provider.clone());
    assert!(!authenticator.is_open(), "there is somebody whose tokens are believed");
    let broken = good[..good.len() - 10].to_owned();
    // Somebody made a key that looks like a token; with a provider it opens nothing.
    let record = KeyRecord { id: "a".into(), ..KeyRecord::new("a".to_owned(), "acme", 0) };
    authenticator.set_keys(Origin::File, vec![record.of_key(&smg_base::Secret::new(broken.clone()))]);
    let via = async |offered: &str| authenticator.identify(offered).await.map(|who| who.via);
    assert_eq!(via(&good).await, Ok(Via::Token));
    assert_eq!(via(&broken).await, Err(Denied::Token(TokenFault::Signature)));
    assert_eq!(via("sk-unknown").await, Err(Denied::Unknown));
}
