#include <curl/curl.h>
#include <fcntl.h>
#include <malloc.h>
#include <sodium.h>
#include <sys/socket.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <mutex>

#include "base/http_transport.h"
#include "base/secret.h"
#include "base/status.h"

namespace optod {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kMaxConnect{10'000};
constexpr size_t kMaxHeaderBytes = 256u << 10;
constexpr size_t kStackOfCurl = 64u << 10;  // what libcurl may have left headers in

// libcurl's memory is overwritten when it is given back: its copies of a request hold the key of an endpoint.

void WipeAndFree(void* memory) {
  if (memory != nullptr) explicit_bzero(memory, malloc_usable_size(memory));
  std::free(memory);
}

void* WipeAndReallocate(void* memory, size_t size) {
  void* larger = std::malloc(size);
  if (larger == nullptr || memory == nullptr) return larger;
  std::memcpy(larger, memory, std::min(size, malloc_usable_size(memory)));
  WipeAndFree(memory);
  return larger;
}

/// Copies go through vector registers, and what binds symbols lazily saves these on the stack.
void WipeVectorRegisters() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx")) asm volatile("vzeroall" ::: "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                                                          "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
  if (__builtin_cpu_supports("avx512vl")) {
#define OPTOD_WIPE(n) asm volatile("vpxorq %%xmm" #n ", %%xmm" #n ", %%xmm" #n ::: "memory")
    OPTOD_WIPE(16); OPTOD_WIPE(17); OPTOD_WIPE(18); OPTOD_WIPE(19); OPTOD_WIPE(20); OPTOD_WIPE(21); OPTOD_WIPE(22); OPTOD_WIPE(23);
    OPTOD_WIPE(24); OPTOD_WIPE(25); OPTOD_WIPE(26); OPTOD_WIPE(27); OPTOD_WIPE(28); OPTOD_WIPE(29); OPTOD_WIPE(30); OPTOD_WIPE(31);
#undef OPTOD_WIPE
  }
#endif
}

struct HeaderList {
  curl_slist* list = nullptr;
  ~HeaderList() { curl_slist_free_all(list); }
  void Add(const std::string& line) { list = curl_slist_append(list, line.c_str()); }
};

std::string Lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

std::string Trim(const std::string& text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string::npos) return "";
  return text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

/// What one exchange collects.
struct Exchange {
  HttpResponse response;
  size_t header_bytes = 0;
  size_t max_body = 0;
  bool too_large = false, ended = false;
  CURL* curl = nullptr;
  const std::function<bool(std::string_view)>* on_body = nullptr;
};

size_t OnBody(char* data, size_t, size_t size, void* user) {
  auto& exchange = *static_cast<Exchange*>(user);
  if (size > exchange.max_body - exchange.response.body.size()) {
    exchange.too_large = true;
    return 0;  // ends the transfer
  }
  exchange.response.body.append(data, size);
  if (*exchange.on_body) {
    long status = 0;
    curl_easy_getinfo(exchange.curl, CURLINFO_RESPONSE_CODE, &status);
    exchange.ended = status == 200 && !(*exchange.on_body)(std::string_view(data, size));
    if (exchange.ended) return 0;
  }
  return size;
}

size_t OnHeader(char* data, size_t, size_t size, void* user) {
  auto& exchange = *static_cast<Exchange*>(user);
  exchange.header_bytes += size;
  if (exchange.header_bytes > kMaxHeaderBytes) {
    exchange.too_large = true;
    return 0;
  }
  const std::string line(data, size);
  const size_t colon = line.find(':');
  if (line.compare(0, 5, "HTTP/") == 0) {
    exchange.response.headers.clear();  // those of a 100 Continue before it
  } else if (colon != std::string::npos) {
    exchange.response.headers.emplace_back(Lower(line.substr(0, colon)), Trim(line.substr(colon + 1)));
  }
  return size;
}

/// Child processes must not inherit connections.
curl_socket_t OpenCloexec(void*, curlsocktype, curl_sockaddr* address) {
  return socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
}

absl::Status CurlStatus(CURLcode code, const HttpRequest& request, const Exchange& exchange) {
  switch (code) {
    case CURLE_OK:
      return absl::OkStatus();
    case CURLE_URL_MALFORMAT:
      return InvalidArgument("http: url: not a valid http:// or https:// URL");
    case CURLE_UNSUPPORTED_PROTOCOL:  // the URL's scheme was checked before: this is an answer that is no HTTP
      return Unavailable("http: the answer is not HTTP");
    case CURLE_OPERATION_TIMEDOUT:
      return absl::DeadlineExceededError(Cat("http: no complete answer within ", request.timeout.count(), " ms"));
    case CURLE_WRITE_ERROR:
      if (exchange.too_large)
        return ResourceExhausted("http: the answer is larger than ", request.max_response_bytes, " bytes");
      if (exchange.ended) return absl::CancelledError("http: ended by the caller");
      [[fallthrough]];
    default:
      // libcurl's fixed text for the code: it names no host and no credential, unlike its error buffer.
      return Unavailable("http: ", curl_easy_strerror(code));
  }
}

absl::Status CheckRequest(const HttpRequest& request) {
  const std::string scheme = Lower(request.url.substr(0, 8));
  if (scheme.compare(0, 7, "http://") != 0 && scheme != "https://") {
    return InvalidArgument("http: url: must begin with http:// or https://");
  }
  for (const auto& [name, value] : request.headers) {
    constexpr std::string_view kBreaks("\r\n\0", 3);
    if (name.empty() || name.find_first_of(kBreaks) != std::string::npos ||
        value.find_first_of(kBreaks) != std::string::npos) {
      return InvalidArgument("http: headers: a name is empty, or an entry holds a line break or a zero byte");
    }
  }
  return absl::OkStatus();
}

bool IsLoopback(const std::string& url) {
  CURLU* parts = curl_url();
  char* host = nullptr;
  bool loopback = false;
  if (parts != nullptr && curl_url_set(parts, CURLUPART_URL, url.c_str(), 0) == CURLUE_OK &&
      curl_url_get(parts, CURLUPART_HOST, &host, 0) == CURLUE_OK) {
    const std::string name = Lower(host);
    loopback = name == "localhost" || name == "[::1]" || name.compare(0, 4, "127.") == 0;
  }
  curl_free(host);
  curl_url_cleanup(parts);
  return loopback;
}

void SetUp(CURL* curl, const HttpRequest& request, const HeaderList& headers, Exchange* exchange) {
  const long timeout = std::max<long>(1, request.timeout.count());
  curl_easy_setopt(curl, CURLOPT_URL, request.url.c_str());
  curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L);
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, timeout);
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, std::min<long>(timeout, kMaxConnect.count()));
  curl_easy_setopt(curl, CURLOPT_TCP_NODELAY, 1L);
  curl_easy_setopt(curl, CURLOPT_OPENSOCKETFUNCTION, &OpenCloexec);
  if (IsLoopback(request.url)) curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
  curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers.list);
  curl_easy_setopt(curl, CURLOPT_USERAGENT, "optod");
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, &OnBody);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, exchange);
  curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, &OnHeader);
  curl_easy_setopt(curl, CURLOPT_HEADERDATA, exchange);
  if (request.method == "HEAD") {
    curl_easy_setopt(curl, CURLOPT_NOBODY, 1L);
  } else if (request.method != "GET" || !request.body.empty()) {
    curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(request.body.size()));
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, request.body.data());
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, request.method.c_str());
  }
}

class CurlTransport final : public HttpTransport {
 public:
  ~CurlTransport() override {
    for (CURL* curl : idle_) curl_easy_cleanup(curl);
  }

  absl::StatusOr<HttpResponse> Perform(const HttpRequest& request) override {
    RETURN_IF_ERROR(CheckRequest(request));
    CURL* curl = Take();
    if (curl == nullptr) return Internal("http: cannot create a libcurl handle");
    Exchange exchange;
    exchange.max_body = request.max_response_bytes;
    exchange.curl = curl;
    exchange.on_body = &request.on_body;
    HeaderList headers;
    headers.Add("Expect:");  // no round trip to ask before large bodies
    for (const auto& [name, value] : request.headers) {
      std::string line;
      line.reserve(name.size() + value.size() + 2);  // one buffer: what it outgrew could not be wiped
      line.append(name).append(value.empty() ? ";" : ": ").append(value);
      headers.Add(line);
      Wipe(line);
    }
    SetUp(curl, request, headers, &exchange);
    const CURLcode code = curl_easy_perform(curl);
    WipeVectorRegisters();
    sodium_stackzero(kStackOfCurl);
    long status = 0;
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    GiveBack(curl);
    RETURN_IF_ERROR(CurlStatus(code, request, exchange));
    exchange.response.status = static_cast<int>(status);
    return std::move(exchange.response);
  }

 private:
  CURL* Take() {
    {
      std::lock_guard lock(mutex_);
      if (!idle_.empty()) {
        CURL* curl = idle_.back();
        idle_.pop_back();
        return curl;
      }
    }
    return curl_easy_init();
  }

  void GiveBack(CURL* curl) {
    curl_easy_reset(curl);  // keeps its connections, forgets headers and pointers
    std::lock_guard lock(mutex_);
    idle_.push_back(curl);
  }

  std::mutex mutex_;
  std::vector<CURL*> idle_;
};

}  // namespace

std::unique_ptr<HttpTransport> MakeCurlTransport() {
  static const CURLcode ready = curl_global_init_mem(CURL_GLOBAL_DEFAULT, &std::malloc, &WipeAndFree,
                                                     &WipeAndReallocate, &strdup, &std::calloc);
  (void)ready;  // on failure curl_easy_init fails too, and Perform says so
  return std::make_unique<CurlTransport>();
}

}  // namespace optod
