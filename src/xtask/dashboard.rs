//! The Grafana dashboard, from a table of panels: `deploy/grafana/smg.json` is written by `cargo xtask docs`.
//!
//! `src/tidy.rs` checks that every metric named here is one the program has.

use std::fmt::Write as _;

/// A quantile over all instances that are chosen.
macro_rules! quantile {
    ($share:literal, $metric:literal) => {
        concat!("histogram_quantile(", $share, ", sum by (le) (rate(", $metric, "{$by}[$__rate_interval])))")
    };
}
/// One panel: title, Grafana's unit, and its queries with their legends.
struct Panel(&'static str, &'static str, &'static [(&'static str, &'static str)]);

/// Titles of rows and the panels in them.
const ROWS: &[(&str, &[Panel])] = &[
    (
        "Traffic",
        &[
            Panel(
                "Requests by endpoint",
                "reqps",
                &[("sum by (endpoint) (rate(smg_router_requests_total{$by}[$__rate_interval]))", "{{endpoint}}")],
            ),
            Panel(
                "Answers by status",
                "reqps",
                &[("sum by (status_code) (rate(smg_http_responses_total{$by}[$__rate_interval]))", "{{status_code}}")],
            ),
            Panel(
                "In progress",
                "short",
                &[
                    ("sum(smg_http_requests_in_flight{$by})", "requests"),
                    ("sum(smg_router_streams_open{$by})", "streams"),
                    ("sum(smg_admission_queue_depth{$by})", "waiting for admission"),
                    ("sum by (class) (smg_scheduler_queue_depth{$by})", "waiting: {{class}}"),
                    ("sum(smg_http_connections_active{$by})", "connections"),
                ],
            ),
            Panel(
                "Tokens",
                "short",
                &[("sum by (token_type) (rate(smg_router_tokens_total{$by}[$__rate_interval]))", "{{token_type}}/s")],
            ),
        ],
    ),
    (
        "Latency",
        &[
            Panel(
                "Time to first token",
                "s",
                &[
                    (quantile!("0.5", "smg_router_ttft_seconds_bucket"), "p50"),
                    (quantile!("0.95", "smg_router_ttft_seconds_bucket"), "p95"),
                    (quantile!("0.99", "smg_router_ttft_seconds_bucket"), "p99"),
                ],
            ),
            Panel(
                "Time between output events",
                "s",
                &[
                    (quantile!("0.5", "smg_router_tpot_seconds_bucket"), "mean, p50"),
                    (quantile!("0.99", "smg_router_tpot_seconds_bucket"), "mean, p99"),
                    (quantile!("0.99", "smg_router_inter_token_gap_max_duration_seconds_bucket"), "longest, p99"),
                ],
            ),
            Panel(
                "Whole request",
                "s",
                &[
                    (quantile!("0.5", "smg_router_request_duration_seconds_bucket"), "p50"),
                    (quantile!("0.99", "smg_router_request_duration_seconds_bucket"), "p99"),
                ],
            ),
            Panel(
                "Added by the gateway",
                "s",
                &[
                    (quantile!("0.5", "smg_router_overhead_seconds_bucket"), "before dispatch, p50"),
                    (quantile!("0.99", "smg_router_overhead_seconds_bucket"), "before dispatch, p99"),
                    (quantile!("0.99", "smg_admission_wait_seconds_bucket"), "waiting for admission, p99"),
                ],
            ),
        ],
    ),
    (
        "Workers",
        &[
            Panel(
                "Usable workers by model",
                "short",
                &[
                    ("sum by (model) (smg_worker_pool_available{$by})", "{{model}} usable"),
                    ("sum by (model) (smg_worker_pool_size{$by})", "{{model}} all"),
                ],
            ),
            Panel(
                "Requests at each worker",
                "short",
                &[("sum by (worker) (smg_worker_requests_active{$by})", "{{worker}}")],
            ),
            Panel(
                "Prompt tokens pending at each worker",
                "short",
                &[("sum by (worker) (smg_worker_pending_tokens{$by})", "{{worker}}")],
            ),
            Panel("Breakers (0 closed, 1 open, 2 trying)", "short", &[("smg_worker_cb_state{$by}", "{{worker}}")]),
            Panel("KV cache in use, as engines say", "percentunit", &[("smg_engine_token_usage{$by}", "{{worker}}")]),
            Panel("Waiting in engines, as they say", "short", &[("smg_engine_waiting_requests{$by}", "{{worker}}")]),
            Panel(
                "Choices by policy and reason",
                "ops",
                &[(
                    "sum by (policy, branch) (rate(smg_router_policy_branch_total{$by}[$__rate_interval]))",
                    "{{policy}}: {{branch}}",
                )],
            ),
            Panel(
                "Prompt tokens found in caches",
                "percentunit",
                &[(
                    "sum(rate(smg_router_tokens_total{$by,token_type=\"cached\"}[$__rate_interval])) \
                     / sum(rate(smg_router_tokens_total{$by,token_type=\"input\"}[$__rate_interval]))",
                    "cached",
                )],
            ),
        ],
    ),
    (
        "Mesh",
        &[
            Panel(
                "Members by state, as each node sees them",
                "short",
                &[
                    ("max by (state) (smg_mesh_members{$by})", "{{state}}, most"),
                    ("min by (state) (smg_mesh_members{$by,state=\"alive\"})", "{{state}}, fewest"),
                    ("max(smg_mesh_members_doubted{$by})", "doubted, most"),
                ],
            ),
            Panel(
                "Own changes that a peer has not acknowledged",
                "short",
                &[("max by (instance, store) (smg_mesh_lag_versions{$by})", "{{instance}} {{store}}")],
            ),
            Panel(
                "Sent between nodes",
                "Bps",
                &[
                    (
                        "sum by (instance) (rate(smg_mesh_wire_bytes_total{$by,direction=\"sent\"}[$__rate_interval]))",
                        "{{instance}}, all",
                    ),
                    (
                        "sum by (class) (rate(smg_mesh_frame_bytes_total{$by,direction=\"sent\"}[$__rate_interval]))",
                        "{{class}}",
                    ),
                ],
            ),
            Panel(
                "Round trip to peers",
                "s",
                &[("max by (instance, peer) (smg_mesh_rtt_seconds{$by})", "{{instance}} to {{peer}}")],
            ),
            Panel(
                "Relayed requests under way",
                "short",
                &[("sum by (instance, direction) (smg_mesh_relay_streams{$by})", "{{instance}} {{direction}}")],
            ),
            Panel("Entries by plane", "short", &[("max by (store) (router_mesh_store_cardinality{$by})", "{{store}}")]),
            Panel(
                "Nodes that know the same (0 if not)",
                "short",
                &[(
                    "max by (store) (router_mesh_store_hash{$by}) == bool min by (store) (router_mesh_store_hash{$by})",
                    "{{store}}",
                )],
            ),
            Panel(
                "News of members, and losses",
                "ops",
                &[
                    ("sum by (state) (rate(smg_mesh_member_news_total{$by}[$__rate_interval]))", "{{state}}"),
                    ("sum(rate(router_mesh_peer_reconnects_total{$by}[$__rate_interval]))", "reconnects"),
                    (
                        "sum by (status) (rate(router_mesh_peer_nack_total{$by}[$__rate_interval]))",
                        "frames: {{status}}",
                    ),
                ],
            ),
        ],
    ),
    (
        "Trouble",
        &[
            Panel(
                "Failed requests by code",
                "reqps",
                &[(
                    "sum by (error_type) (rate(smg_router_request_errors_total{$by}[$__rate_interval]))",
                    "{{error_type}}",
                )],
            ),
            Panel(
                "Failed attempts, retries",
                "ops",
                &[
                    ("sum by (error_type) (rate(smg_worker_errors_total{$by}[$__rate_interval]))", "{{error_type}}"),
                    ("sum(rate(smg_worker_retries_total{$by}[$__rate_interval]))", "retries"),
                    (
                        "sum by (reason) (rate(smg_worker_retries_exhausted_total{$by}[$__rate_interval]))",
                        "not retried: {{reason}}",
                    ),
                ],
            ),
            Panel(
                "Streams that broke",
                "ops",
                &[
                    (
                        "sum by (error_type) (rate(smg_router_stream_failures_total{$by}[$__rate_interval]))",
                        "{{error_type}}",
                    ),
                    (
                        "sum by (phase) (rate(smg_http_client_disconnects_total{$by}[$__rate_interval]))",
                        "client left: {{phase}}",
                    ),
                ],
            ),
            Panel(
                "Refused",
                "reqps",
                &[
                    (
                        "sum by (result) (rate(smg_http_rate_limit_total{$by,result!=\"allowed\"}[$__rate_interval]))",
                        "admission: {{result}}",
                    ),
                    (
                        "sum by (victim_class) (rate(smg_scheduler_preemption_total{$by}[$__rate_interval]))",
                        "gave way: {{victim_class}}",
                    ),
                    (
                        "sum by (surface) (rate(smg_http_auth_failures_total{$by}[$__rate_interval]))",
                        "key: {{surface}}",
                    ),
                ],
            ),
        ],
    ),
    (
        "Process",
        &[
            Panel("CPU", "percentunit", &[("rate(process_cpu_seconds_total{$by}[$__rate_interval])", "{{instance}}")]),
            Panel(
                "Memory",
                "bytes",
                &[
                    ("process_resident_memory_bytes{$by}", "{{instance}}"),
                    ("smg_http_body_budget_used_bytes{$by}", "{{instance}} bodies"),
                    ("sum by (instance) (smg_policy_memory_bytes{$by})", "{{instance}} policies"),
                ],
            ),
            Panel(
                "Descriptors",
                "short",
                &[("process_open_fds{$by}", "{{instance}}"), ("process_max_fds{$by}", "{{instance}} limit")],
            ),
            Panel(
                "How late tasks run",
                "s",
                &[(quantile!("0.99", "smg_tokio_event_loop_delay_seconds_bucket"), "p99")],
            ),
        ],
    ),
];

const SELECTOR: &str = "job=~\"$job\",instance=~\"$instance\"";
const PANEL_WIDTH: usize = 6;
const PANEL_HEIGHT: usize = 8;
const GRID_WIDTH: usize = 24;

/// The dashboard as Grafana imports it.
pub(crate) fn json() -> String {
    let mut panels = Vec::new();
    let mut y = 0;
    for (title, row) in ROWS {
        panels.push(format!(
            "{{\"type\":\"row\",\"title\":{},\"collapsed\":false,\"gridPos\":{},\"panels\":[]}}",
            quote(title),
            position(0, y, GRID_WIDTH, 1)
        ));
        y += 1;
        for (index, panel) in row.iter().enumerate() {
            let (x, below) = (index * PANEL_WIDTH % GRID_WIDTH, index * PANEL_WIDTH / GRID_WIDTH * PANEL_HEIGHT);
            panels.push(panel_json(panel, &position(x, y + below, PANEL_WIDTH, PANEL_HEIGHT)));
        }
        y += (row.len() * PANEL_WIDTH).div_ceil(GRID_WIDTH) * PANEL_HEIGHT;
    }
    let numbered =
        panels.iter().enumerate().map(|(index, panel)| format!("    {{\"id\":{},{}", index + 1, &panel[1..]));
    format!(
        "{{\n  \"title\": \"smg\",\n  \"uid\": \"smg-gateway\",\n  \"tags\": [\"llm\", \"gateway\"],\n  \"schemaVersion\": 39,\n  \
         \"editable\": true,\n  \"refresh\": \"30s\",\n  \"time\": {{\"from\": \"now-1h\", \"to\": \"now\"}},\n  \
         \"templating\": {{\"list\": [\n{}\n  ]}},\n  \"panels\": [\n{}\n  ]\n}}\n",
        variables(),
        numbered.collect::<Vec<_>>().join(",\n"),
    )
}

fn variables() -> String {
    let source = "    {\"name\":\"source\",\"label\":\"Data source\",\"type\":\"datasource\",\"query\":\"prometheus\"}"
        .to_owned();
    let values = |name: &str, query: &str| {
        format!(
            "    {{\"name\":{0},\"label\":{0},\"type\":\"query\",\"datasource\":{DATASOURCE},\"query\":{1},\"refresh\":2,\
             \"includeAll\":true,\"multi\":true,\"allValue\":\".*\",\"current\":{{\"text\":\"All\",\"value\":\"$__all\"}}}}",
            quote(name),
            quote(query)
        )
    };
    let instance = "label_values(smg_build_info{job=~\"$job\"}, instance)";
    [source, values("job", "label_values(smg_build_info, job)"), values("instance", instance)].join(",\n")
}

const DATASOURCE: &str = "{\"type\":\"prometheus\",\"uid\":\"${source}\"}";

fn panel_json(Panel(title, unit, queries): &Panel, position: &str) -> String {
    let mut targets = String::new();
    for (index, (query, legend)) in queries.iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        let letter = char::from(b'A' + u8::try_from(index).expect("a panel has few queries"));
        let query = quote(&query.replace("$by", SELECTOR));
        write!(targets, "{comma}{{\"refId\":\"{letter}\",\"expr\":{query},\"legendFormat\":{}}}", quote(legend))
            .expect("writing to a string can't fail");
    }
    format!(
        "{{\"type\":\"timeseries\",\"title\":{},\"datasource\":{DATASOURCE},\"gridPos\":{position},\
         \"fieldConfig\":{{\"defaults\":{{\"unit\":{},\"min\":0}},\"overrides\":[]}},\
         \"options\":{{\"legend\":{{\"displayMode\":\"list\",\"placement\":\"bottom\"}},\"tooltip\":{{\"mode\":\"multi\"}}}},\
         \"targets\":[{targets}]}}",
        quote(title),
        quote(unit)
    )
}

fn position(x: usize, y: usize, width: usize, height: usize) -> String {
    format!("{{\"x\":{x},\"y\":{y},\"w\":{width},\"h\":{height}}}")
}

fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
