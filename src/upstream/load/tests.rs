//! Engines' load figures, and the loop that keeps them.

use std::{sync::Arc, time::Duration};

use smg_base::{Clock, ManualClock, SplitMix, Timestamp};
use smg_fleet::{Engine, EngineLoad, EngineProfile, Fleet, FleetConfig, HealthConfig, Origin};
use smg_runtime::{Phase, Shutdown};

use super::{LoadError, poll, reading, reading::Generation, run_load_monitor};
use crate::{
    Config,
    detect::tests::mangled,
    testing::{self, spec, until, upstream, worker_of},
};

const SGLANG_LOADS: &str = r#"{"timestamp":"2026-11-24T00:00:00+00:00","version":"0.5.6","loads":[
    {"timestamp":1.0,"dp_rank":0,"num_running_reqs":3,"num_waiting_reqs":1,"num_used_tokens":1000,
     "max_total_num_tokens":10000,"token_usage":0.1,"gen_throughput":100.5,"cache_hit_rate":0.5},
    {"timestamp":1.0,"dp_rank":1,"num_running_reqs":5,"num_waiting_reqs":0,"num_used_tokens":3000,
     "max_total_num_tokens":10000,"token_usage":0.3,"gen_throughput":99.5,"cache_hit_rate":0.5}]}"#;
const SGLANG_METRICS: &str = "# TYPE sglang:num_running_reqs gauge\nsglang:num_running_reqs{model_name=\"m\"} 4.0\n\
    sglang:num_queue_reqs{model_name=\"m\"} 2.0\nsglang:token_usage{model_name=\"m\"} 0.25\n\
    sglang:gen_throughput{model_name=\"m\"} 50.0\nsglang:full_token_usage{model_name=\"m\"} 0.9\n";
const VLLM_METRICS: &str = "vllm:num_requests_running{engine=\"0\",model_name=\"m\"} 7.0\n\
    vllm:num_requests_running{engine=\"1\",model_name=\"m\"} 1.0\nvllm:num_requests_waiting{engine=\"0\"} 2.0\n\
    vllm:kv_cache_usage_perc{engine=\"0\"} 0.5\nvllm:kv_cache_usage_perc{engine=\"1\"} 0.25\n\
    vllm:generation_tokens_total{engine=\"0\"} 1000.0\nvllm:generation_tokens_created{engine=\"0\"} 1.7e9\n";
const LLAMA_METRICS: &str = "# HELP llamacpp:requests_processing Number\nllamacpp:requests_processing 2\n\
    llamacpp:requests_deferred 5\nllamacpp:tokens_predicted_total 300\n";
const LLAMA_SLOTS: &str = r#"[{"id":0,"n_ctx":8192,"is_processing":true},{"id":1,"n_ctx":8192,"is_processing":false},
    {"id":2,"n_ctx":8192,"is_processing":true}]"#;
const TRTLLM_ITERATIONS: &str = r#"[{"iter":1,"numActiveRequests":9,"numQueuedRequests":9},{"gpuMemUsage":56401920000,
    "inflightBatchingStats":{"numContextRequests":0},"iter":2,"iterLatencyMS":16.5,
    "kvCacheStats":{"cacheHitRate":0.1,"freeNumBlocks":75,"maxNumBlocks":100,"tokensPerBlock":32,"usedNumBlocks":25},
    "numActiveRequests":4,"numQueuedRequests":1}]"#;

fn load(running: u32, waiting: u32, kv_usage: f32, generation_tokens_per_second: f32) -> EngineLoad {
    EngineLoad { running, waiting, kv_usage, generation_tokens_per_second, at: Timestamp::ORIGIN }
}

#[tokio::test]
async fn each_engine_is_asked_in_its_own_way() {
    let check = async |engine, routes: &[(&str, u16, &str)], expected: Result<EngineLoad, LoadError>| {
        let server = testing::Engine::start(routes).await;
        let mut spec = spec(&server.server.url());
        spec.runtime_type = Some(engine);
        let found = poll(&upstream(&Config::default()), &worker_of(spec, Origin::Flag)).await;
        assert_eq!(found, expected, "{engine} {:?}", server.asked.lock());
    };
    let loads = "/v1/loads?include=core";
    check(Engine::Sglang, &[(loads, 200, SGLANG_LOADS)], Ok(load(8, 1, 0.2, 200.0))).await;
    check(Engine::Sglang, &[("/metrics", 200, SGLANG_METRICS)], Ok(load(4, 2, 0.25, 50.0))).await;
    check(Engine::Sglang, &[], Err(LoadError::Unsupported)).await;
    check(Engine::Sglang, &[(loads, 500, "")], Err(LoadError::Status(500))).await;
    check(Engine::Sglang, &[(loads, 200, r#"{"loads":[]}"#)], Err(LoadError::Unreadable)).await;
    check(Engine::Vllm, &[("/metrics", 200, VLLM_METRICS)], Ok(load(8, 2, 0.375, 0.0))).await;
    check(Engine::Vllm, &[("/metrics", 200, "python_info 1\n")], Err(LoadError::Unreadable)).await;
    check(Engine::LlamaCpp, &[("/metrics", 200, LLAMA_METRICS)], Ok(load(2, 5, 0.0, 0.0))).await;
    check(Engine::LlamaCpp, &[("/metrics", 501, "{}"), ("/slots", 200, LLAMA_SLOTS)], Ok(load(2, 0, 0.0, 0.0))).await;
    check(Engine::TrtLlm, &[("/metrics", 200, TRTLLM_ITERATIONS)], Ok(load(4, 1, 0.25, 0.0))).await;
    check(Engine::TrtLlm, &[("/metrics", 200, "[]")], Ok(load(0, 0, 0.0, 0.0))).await;
    for engine in [Engine::Ollama, Engine::OpenAi, Engine::Anthropic, Engine::Unknown] {
        check(engine, &[("/metrics", 200, VLLM_METRICS)], Err(LoadError::Unsupported)).await;
    }
}

#[test]
fn figures_out_of_range_become_the_nearest_that_makes_sense() {
    let text = "vllm:num_requests_running -3\nvllm:num_requests_waiting 1e300\nvllm:kv_cache_usage_perc NaN\n";
    let found = reading::vllm_metrics(text).unwrap();
    assert_eq!((found.running, found.waiting, found.kv_usage), (0, u32::MAX, 0.0));
    let old = "vllm:num_requests_running 1\nvllm:gpu_cache_usage_perc 7.5\n";
    assert_eq!(reading::vllm_metrics(old).unwrap().kv_usage, 1.0);
    let body = r#"[{"numActiveRequests":1,"kvCacheStats":{"usedNumBlocks":5,"maxNumBlocks":0}}]"#;
    assert_eq!(reading::trtllm_iterations(body.as_bytes()).unwrap().kv_usage, 0.0);
    let prefixed = SGLANG_METRICS.replace("sglang:", "sglang_");
    assert_eq!(reading::sglang_metrics(&prefixed).unwrap().generation, Generation::Rate(50.0));
}

#[test]
fn no_answer_does_harm() {
    let corpus = [SGLANG_LOADS, SGLANG_METRICS, VLLM_METRICS, LLAMA_METRICS, LLAMA_SLOTS, TRTLLM_ITERATIONS];
    let random = SplitMix::new(0x10ad);
    for _ in 0..20_000 {
        let bytes = mangled(&corpus, &random);
        let text = String::from_utf8_lossy(&bytes);
        let readings = [
            reading::sglang_loads(&bytes),
            reading::sglang_metrics(&text),
            reading::vllm_metrics(&text),
            reading::llama_metrics(&text),
            reading::llama_slots(&bytes),
            reading::trtllm_iterations(&bytes),
        ];
        for reading in readings.into_iter().flatten() {
            assert!((0.0..=1.0).contains(&reading.kv_usage), "{text}");
        }
    }
}

#[tokio::test]
async fn the_monitor_keeps_figures_fresh_and_forgets_old_ones() {
    let engine = testing::Engine::start(&[("/metrics", 200, VLLM_METRICS)]).await;
    let health = HealthConfig { enabled: false, ..HealthConfig::default() };
    let fleet = Arc::new(Fleet::new(FleetConfig { health, ..FleetConfig::default() }));
    let worker = fleet.add(spec(&engine.server.url()), Origin::Flag, Timestamp::ORIGIN).unwrap().worker;
    let profile = EngineProfile { engine: Engine::Vllm, ..EngineProfile::default() };
    assert!(fleet.describe(worker.id, worker.revision, profile));

    let (clock, shutdown) = (Arc::new(ManualClock::default()), Shutdown::new());
    let interval = Duration::from_millis(100);
    let monitor = tokio::spawn(run_load_monitor(
        fleet.clone(),
        upstream(&Config::default()),
        clock.clone() as Arc<dyn Clock>,
        shutdown.clone(),
        interval,
    ));
    let state = worker.state.clone();
    until("the first figures are there", || state.load.engine().is_some()).await;
    assert_eq!(state.load.engine().map(|load| load.running), Some(8));

    // Half a second later the engine has generated a hundred tokens more.
    clock.advance(Duration::from_millis(500));
    engine.set("/metrics", 200, &VLLM_METRICS.replace("} 1000.0", "} 1100.0"));
    until("the rate is known", || {
        state.load.engine().is_some_and(|load| (load.generation_tokens_per_second - 200.0).abs() < 0.1)
    })
    .await;

    engine.set("/metrics", 503, "");
    clock.advance(interval);
    let asked = engine.asked.lock().len();
    until("it was asked again", || engine.asked.lock().len() > asked + 1).await;
    assert!(state.load.engine().is_some(), "one failure is no reason to forget");
    clock.advance(interval * 3);
    until("the figures are forgotten", || state.load.engine().is_none()).await;

    shutdown.advance(Phase::Closing);
    monitor.await.unwrap();
}
