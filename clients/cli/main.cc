#include "clients/cli/app.h"

int main(int argc, char** argv) { return optod::cli::Main(argc, argv); }
